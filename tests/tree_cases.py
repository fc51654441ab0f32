"""Random token trees on top of paged sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.tree import ancestor_masks, paths_definition


@dataclass(frozen=True)
class Tree:
    """A tree of `parents` behind `base` committed slots."""

    base: int
    parents: tuple[int, ...]

    @property
    def ancestors(self) -> np.ndarray:
        return ancestor_masks(list(self.parents))

    @property
    def paths(self) -> list[list[int]]:
        return paths_definition(self.ancestors)

    @property
    def positions(self) -> np.ndarray:
        return np.array([self.base + len(path) - 1 for path in self.paths], np.int32)


def make_tree(base: int, nodes: int, seed: int, deep: bool = False) -> Tree:
    """A random tree with one root; `deep`: mostly a chain."""
    rng = np.random.default_rng([base, nodes, seed])
    low = (lambda i: max(0, i - 2)) if deep else (lambda i: 0)
    return Tree(base, (-1, *(int(rng.integers(low(i), i)) for i in range(1, nodes))))
