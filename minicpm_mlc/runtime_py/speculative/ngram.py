"""Prompt lookup: guesses what followed the same tokens earlier in the prompt or the answer, without
a model.
"""

from __future__ import annotations

import numpy as np

from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree

LONGEST_SUFFIX = 8  # tokens that are compared
MAX_PLACES = 4  # earlier ones whose continuations make one tree
KIND_SUFFIXES = (1, 2, 4, 6)  # tokens of the shortest suffix of each kind of draft


class NgramDrafter:
    """Guesses from the text so far alone."""

    def begin(self) -> None:
        """Nothing is kept between calls."""

    def cached(self, model: CachedModel) -> None:
        """The history that `draft` is given has all that counts."""

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
            continuation(history, int(end), depth) for end in ends[::-1][: min(top_k, MAX_PLACES)]
        ]
        return merge(
            int(history[-1]), rows, sum(length >= shortest for shortest in KIND_SUFFIXES) - 1
        )


def longest_suffix(history: np.ndarray) -> tuple[np.ndarray, int]:
    """(earlier places where the longest repeated suffix ends, ascending; its length, at most
    LONGEST_SUFFIX).
    """
    ends = np.flatnonzero(history[:-1] == history[-1])
    length = 1 if len(ends) else 0
    while 0 < length < LONGEST_SUFFIX:
        longer = ends[ends >= length]
        longer = longer[history[longer - length] == history[-1 - length]]
        if not len(longer):
            break
        ends = longer
        length = length + 1
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
    tokens = [root]
    parents = [-1]
    counts = [len(rows)]
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
