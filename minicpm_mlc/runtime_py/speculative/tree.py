"""A token tree: the last sampled token as root, and guesses of what comes after it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FREE_ROWS = 16  # that take about as long as one row


@dataclass(frozen=True, eq=False)
class Tree:
    """Node 0 is the root, with parent -1. A parent comes before its children, which differ in their
    tokens.
    """

    token_ids: Sequence[int]
    parents: Sequence[int]

    def __len__(self) -> int:
        return len(self.token_ids)

    @functools.cached_property
    def children(self) -> dict[tuple[int, int], int]:
        """(node, token) -> the child with that token."""
        return {
            pair: node
            for node, pair in enumerate(zip(self.parents, self.token_ids, strict=True))
            if node
        }

    @functools.cached_property
    def depths(self) -> np.ndarray:
        """Steps from the root, int32 [n]; the root has 0."""
        depths = [0] * len(self)
        for node in range(1, len(self)):
            depths[node] = depths[self.parents[node]] + 1
        return np.array(depths, np.int32)

    def take(self, nodes: Sequence[int]) -> Tree:
        """The tree of these nodes alone, numbered in this order: the root first, every parent
        before its children.
        """
        place = {node: i for i, node in enumerate(nodes)}
        parents = [-1, *(place[self.parents[node]] for node in nodes[1:])]
        return Tree([self.token_ids[node] for node in nodes], parents)


@dataclass(frozen=True, eq=False)
class Draft:
    """A tree and how likely its drafter holds each node to be reached.

    `reach` float64 [n]: the root has 1, a child at most its parent's. `kind` tells drafts of one
    drafter apart whose chances differ, so that each kind's figures are kept on their own. `levels`
    were drafted, more than a cut may have left; `read_seconds` of the drafting went into
    `read_tokens` of the text that the drafter had not read yet.
    """

    tree: Tree
    reach: np.ndarray
    kind: int = 0
    levels: int = 1
    read_tokens: int = 0
    read_seconds: float = 0.0

    @property
    def reading(self) -> float:
        """Seconds of reading that no level is charged for; few rows take about as long as one and
        count as a level.
        """
        return self.read_seconds if self.read_tokens > FREE_ROWS else 0.0

    def likeliest(self, size: int, reach: np.ndarray | None = None) -> Draft:
        """The draft cut to its `size` likeliest nodes, the likeliest first, ties to the lower
        number.

        `reach`: chances to choose by instead of the drafter's own; they too fall along every path.
        """
        nodes = np.argsort(-(self.reach if reach is None else reach), kind="stable")[:size]
        if np.array_equal(nodes, np.arange(len(self.tree))):
            return self
        return replace(self, tree=self.tree.take(nodes.tolist()), reach=self.reach[nodes])
