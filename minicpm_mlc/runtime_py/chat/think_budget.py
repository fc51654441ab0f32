"""A limit on thinking: counts the tokens of an open think block and says when it must be closed."""

from __future__ import annotations

from collections.abc import Sequence

from minicpm_mlc.prompt.sampling import check_count
from minicpm_mlc.prompt.thinking import CLOSE, ThinkSplitter
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.chat.text import overlap

CLOSING = f"\n{CLOSE}\n\n"  # what the engine writes in the model's place


class ThinkBudget:
    """At most `limit` tokens of thinking, a few more where the last ones are half a character or
    half the marker.
    """

    def __init__(self, limit: int, opened: bool) -> None:
        """`opened`: the prompt ends inside a block. Raises SamplingError for a limit that isn't 0
        or more.
        """
        check_count("max_think_tokens", limit)
        self._limit = limit
        self._used = 0
        self._splitter = ThinkSplitter(opened)
        self._tail = ""

    def start(self) -> bool:
        """Whether the block must be closed before the first token."""
        return self._splitter.thinking and self._limit == 0

    def spend(self, piece: str, at_border: bool) -> bool:
        """Counts one token and the text it gave; true if the block must be closed now, which
        happens once.

        `at_border`: the text so far ends with a whole character.
        """
        self._used += self._splitter.thinking
        self._splitter.feed(piece)
        self._tail = (self._tail + piece)[-len(CLOSE) :]
        return (
            self._splitter.thinking
            and self._used >= self._limit
            and at_border
            and not overlap(self._tail, CLOSE)
        )


class ThinkEnd:
    """Closes the think block in the model's place, once its budget is spent; without a budget
    never.
    """

    def __init__(self, tokenizer: Tokenizer, budget: ThinkBudget | None) -> None:
        self._tokenizer = tokenizer
        self._budget = budget
        self._due = bool(budget and budget.start())

    def forced(self) -> Sequence[int]:
        """The tokens that come next whatever the model says."""
        if not self._due:
            return ()
        self._due = False
        self._budget = None
        return self._tokenizer.encode_middle(CLOSING)

    def spend(self, said: str, at_border: bool) -> None:
        """Counts a token, as ThinkBudget does."""
        if self._budget:
            self._due = self._budget.spend(said, at_border)
