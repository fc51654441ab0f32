"""Prompt lookup: what followed the last time these tokens stood in the prompt or the answer. No
model is asked.
"""

from __future__ import annotations

import numpy as np

from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree

LONGEST = 8  # tokens of a suffix that are compared
CANDIDATES = 4  # earlier places whose continuations make one tree
KINDS = (1, 2, 4, 6)  # shortest suffix of each kind of draft


class NgramDrafter:
    """Guesses from the text so far alone."""

    def begin(self) -> None:
        pass

    def cached(self, model: CachedModel) -> None:
        pass

    def draft(
        self,
        history: np.ndarray,
        depth: int,
        top_k: int,
        floor: float = 0.0,
        read: int | None = None,
    ) -> Draft | None:
        """The continuations of the longest suffix of `history` (int32 [n], the root last) that
        occurred before.

        Up to `top_k` of the latest places, merged into one tree of at most `depth` levels; None
        where there is none.
        """
        ends, length = longest_suffix(history)
        if not len(ends):
            return None
        rows = [
            continuation(history, int(end), depth) for end in ends[::-1][: min(top_k, CANDIDATES)]
        ]
        return merge(int(history[-1]), rows, sum(length >= shortest for shortest in KINDS) - 1)


def longest_suffix(history: np.ndarray) -> tuple[np.ndarray, int]:
    """(earlier places where the longest repeated suffix ends, ascending; its length, at most
    LONGEST).
    """
    ends = np.flatnonzero(history[:-1] == history[-1])
    length = 1 if len(ends) else 0
    while 0 < length < LONGEST:
        longer = ends[ends >= length]
        longer = longer[history[longer - length] == history[-1 - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    return ends, length


def continuation(history: np.ndarray, end: int, depth: int) -> list[int]:
    """`depth` tokens after place `end`; where the text runs out it is taken to repeat with the same
    period.
    """
    period = len(history) - 1 - end
    if period >= depth:
        return history[end + 1 : end + 1 + depth].tolist()
    return history[end + 1 + np.arange(depth) % period].tolist()


def merge(root: int, rows: list[list[int]], kind: int = 0) -> Draft:
    """One tree of several guesses; a node's chance is the share of them that go through it."""
    tokens, parents, counts = [root], [-1], [len(rows)]
    children: dict[tuple[int, int], int] = {}
    for row in rows:
        node = 0
        for token in row:
            child = children.setdefault((node, token), len(tokens))
            if child == len(tokens):
                tokens.append(token)
                parents.append(node)
                counts.append(0)
            counts[child] += 1
            node = child
    return Draft(Tree(tokens, parents), np.array(counts) / len(rows), kind)
