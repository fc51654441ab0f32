"""How much of a prompt is computed at once while other answers wait for their next token, or a
person watches.
"""

from __future__ import annotations

from minicpm_mlc.runtime_py.speculative.costs import Average

STALL_SECONDS = 0.2  # what a running answer waits for a chunk, about
FIRST = 128  # tokens, before anything was measured
LEAST = 16  # tokens, where a page of them takes longer than that
FEW = 16  # tokens: chunks of fewer say nothing of how long more take


class Chunks:
    """Measures what a token of a chunk costs, and makes chunks of whole pages."""

    def __init__(self, page_size: int) -> None:
        self._page = page_size
        self._seconds = Average()  # of one token
        self._latest = 0.0  # the same of the last chunk alone

    @property
    def most(self) -> int:
        """Tokens of the next chunk."""
        return self._fitting() if self._seconds.value else max(FIRST, self._page)

    @property
    def watched(self) -> int:
        """The same while a person watches: what takes STALL_SECONDS, from the first chunk on."""
        return self._fitting() if self._seconds.value else LEAST

    def _fitting(self) -> int:
        """Whole pages of what takes STALL_SECONDS, or a part of one; by the last chunk where the
        machine has just become slower.
        """
        tokens = int(STALL_SECONDS / max(self._seconds.value, self._latest))
        return tokens // self._page * self._page or max(LEAST, tokens)

    def took(self, tokens: int, seconds: float) -> None:
        """A chunk was computed."""
        if tokens >= FEW:
            self._latest = seconds / tokens
            self._seconds.add(self._latest)
