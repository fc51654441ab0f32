"""An EAGLE draft from its root to the whole tree, level by level; only the tree is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import numpy as np

from minicpm_mlc.runtime_py.memory import Memory
from minicpm_mlc.runtime_py.protocols import DRAFT_CHOOSE, DRAFT_EXTEND, DRAFT_LEVEL

# the parts of a row of a tree in the making, which ops/formats/draft_tree.py describes
TOKEN, REACH, NODE = PARTS = (0, 1, 2)


def new_tree(levels: int, width: int) -> np.ndarray:
    """Room for what comes after the root and after the `width` nodes of each level but the last,
    int32 [s, 3, width].
    """
    return np.zeros((1 + width * (levels - 1), len(PARTS), width), np.int32)


def levels_of(tree: Any) -> int:
    """How many levels a tree, as an array or a tensor, has room for."""
    rows, _, width = tree.shape
    return 1 + (rows - 1) // width


def goes_on(tree: np.ndarray, levels: int, floor: float) -> bool:
    """Whether the best node of the last of so many levels reaches the probability `floor`."""
    width = tree.shape[2]
    guess = int(tree[1 + (levels - 1) * width, NODE, 0]) - 1
    reach = tree[guess // width, REACH, guess % width].view(np.float32)
    return bool(reach >= log(max(floor, 1e-30)))


class DraftLoop:
    """The functions of one library. Nothing is read between two levels, unless whoever calls
    does.
    """

    def __init__(
        self,
        memory: Memory,
        functions: Mapping[str, Sequence[Callable[..., Any]]],
        draft_ids: np.ndarray,
    ) -> None:
        """`draft_ids`: the base's token of each of the head's ids."""
        self._functions, self._memory = functions, memory
        self._vocabulary = memory.tensor(draft_ids)

    def __call__(
        self,
        arguments: Sequence[Any],
        pools: Any,
        params: Any,
        more: Callable[[int], bool] = lambda levels: True,
    ) -> int:
        """Fills the tree, the last of these `arguments`, as Library.draft_tree gives them. Before
        each further level `more(levels)` is asked. Returns how many levels there are.
        """
        *rows, positions, slots, base, ancestors, tree = arguments
        table, growing = rows[4], (self._vocabulary, tree)
        found = self._call(DRAFT_EXTEND, *rows, pools, params)
        level = self._call(DRAFT_CHOOSE, *found, positions, slots, base, ancestors, *growing)
        levels = 1
        while levels < levels_of(tree) and more(levels):
            token_ids, hidden, positions, slots, ancestors = level
            nodes = token_ids, hidden, positions, slots, base, table, ancestors
            level = self._call(DRAFT_LEVEL, *nodes, *growing, pools, params)
            levels += 1
        return levels

    def _call(self, name: str, *arguments: Any) -> Any:
        (function,) = self._functions[name]
        return self._memory.call(function, *arguments)
