"""Scores of prompts that were asked for lately: questions come with several continuations of one
context, whose scores are computed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Ids

from minicpm_mlc.runtime_py.events import Scored
from minicpm_mlc.runtime_py.kv_cache import common_prefix

PROMPTS = 8  # that are remembered
LONGEST = 8192  # tokens; a score takes up to a KiB


class PromptScores:
    """The scores of the latest prompts."""

    def __init__(self) -> None:
        self._known: deque[tuple[int, list[int], list[Scored]]] = deque(maxlen=PROMPTS)

    def add(self, token_ids: list[int], top: int, scores: list[Scored]) -> None:
        """Scores of all tokens of a prompt, with `top` others beside each."""
        if len(token_ids) <= LONGEST:
            self._known.append((top, token_ids, scores))

    def find(self, token_ids: Ids[int], top: int) -> list[Scored]:
        """Scores of the longest known beginning of a prompt."""
        found = [
            scores[: common_prefix(known, token_ids)]
            for count, known, scores in self._known
            if count == top
        ]
        return max(found, key=len, default=[])
