"""Sequences, token trees and pools that the operators over pages are sampled with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.ops.formats.kv import ALL_KV_FORMATS, F16, F32, KVFormat
from minicpm_mlc.ops.formats.tree import ancestor_masks, paths_definition
from minicpm_mlc.ops.samples import ROWS, Draw

TABLES = [[4, 0, 3, 2], [1, 2, 0, 3]]  # of two sequences that share pages, of the five there are
SLOTS = [70, 250]  # of the second page, and in the midst of the last
BASE = 127  # a tree over the end of the second page
PARENTS = [-1, 0, 0]
PERIOD = 40  # components of a head that differ
HEADS = [(4, 2, 64), (16, 1, 128)]  # heads, key/value heads, head_dim: groups of 2 and 16
TREES = 4


def heads_and_formats() -> Iterator[tuple[int, int, int, KVFormat]]:
    """What the grid tries: both groups with the formats that every device is asked for, the cheaper
    one with the others.
    """
    for kv in ALL_KV_FORMATS.values():
        for heads in HEADS if kv in (F32, F16) else HEADS[:1]:
            yield *heads, kv


def formats_by_batch() -> Iterator[tuple[int, int, int, KVFormat, bool]]:
    """Every format for the rows of a chunk and of a batch, each with a group."""
    for kv in ALL_KV_FORMATS.values():
        for heads, batched in zip(HEADS, (False, True), strict=True):
            yield *heads, kv, batched


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one sequence, or one of each of several. `table`: int32 [s, p]; `slots`: int32
    [n].
    """

    table: np.ndarray
    slots: np.ndarray

    @property
    def pages(self) -> int:
        """How many the pools must have."""
        return 1 + int(self.table.max())

    def arguments(self) -> list[Tiled]:
        """Page tables and slots."""
        return [Tiled.whole(self.table), Tiled.whole(self.slots)]


def small_rows(batched: bool, slots: list[int]) -> Rows:
    """At these slots of two sequences, or of one."""
    return Rows(np.array(TABLES[: 1 + batched], np.int32), np.array(slots, np.int32))


def sampled_rows(
    draw: Draw, batched: bool, contexts: tuple[int, ...] = (1, 64, 65), longest: int = 700
) -> Iterator[Rows]:
    """In the grid the last row sees all of each context, and of 4 more of up to `longest`."""
    if not draw.whole:
        yield small_rows(batched, SLOTS)
        return
    for context in (*contexts, *draw.random.integers(2, longest, 4).tolist()):
        n = min(int(draw.random.choice(ROWS[:6])), context)
        slots = np.sort(draw.random.choice(context, n, replace=False)).astype(np.int32)
        slots[-1] = context - 1
        yield Rows(shuffled(draw, -(-context // PAGE_SIZE), n if batched else 1), slots)


def shuffled(draw: Draw, pages: int, sequences: int = 1) -> np.ndarray:
    """Page tables int32 [sequences, pages] that have no page in common."""
    table = draw.random.permutation(pages * sequences).astype(np.int32)
    return table.reshape(sequences, pages)


@dataclass(frozen=True, eq=False)
class Tree:
    """A token tree behind `base` slots. `table`: int32 [1, p]; `ancestors`: int32 [n, 2]."""

    table: np.ndarray
    base: int
    ancestors: np.ndarray

    @property
    def pages(self) -> int:
        """How many the pools must have."""
        return 1 + int(self.table.max())

    @property
    def positions(self) -> np.ndarray:
        """int32 [n], which are also the slots that the nodes have in their own sequences."""
        depths = [len(path) - 1 for path in paths_definition(self.ancestors)]
        return np.array(depths, np.int32) + np.int32(self.base)

    def arguments(self) -> list[Tiled]:
        """Page table, first slot and ancestor masks."""
        return [*map(Tiled.whole, (self.table, np.array([self.base], np.int32), self.ancestors))]


def sampled_trees(draw: Draw) -> Iterator[Tree]:
    """Trees of 3 nodes, or of 1 to 64: bushes, or mostly chains."""
    if not draw.whole:
        yield Tree(np.array(TABLES[:1], np.int32), BASE, ancestor_masks(PARENTS))
        return
    for _ in range(TREES):
        base, nodes, deep = (int(draw.random.integers(*range_)) for range_ in _TREE_RANGES)
        oldest = [max(0, i - 2) if deep else 0 for i in range(nodes)]
        parents = [-1, *(int(draw.random.integers(oldest[i], i)) for i in range(1, nodes))]
        table = shuffled(draw, -(-(base + nodes) // PAGE_SIZE))
        yield Tree(table, base, ancestor_masks(parents))


_TREE_RANGES = (1, 400), (1, 65), (0, 2)  # base, nodes, whether it is deep


def drawn_pools(
    draw: Draw, pages: int, num_kv_heads: int, head_dim: int, kv: KVFormat
) -> list[Tiled]:
    """Keys and values in every slot."""
    if draw.whole:
        return [*map(Tiled.whole, kv.random_pages(draw.random, pages, num_kv_heads, head_dim))]
    shape = 2, pages, PAGE_SIZE, num_kv_heads, head_dim
    numbers = draw.normal(*shape, period=PERIOD).array().swapaxes(2, 3)
    keys, values = kv.pack(numbers[0].swapaxes(2, 3), numbers[1])
    period = keys.shape[2] if kv.scale_rows else PERIOD  # scales lie behind the keys
    return [Tiled(keys[:, :, :period], keys.shape), Tiled(values[..., :PERIOD], values.shape)]


def drawn_means(draw: Draw, pages: int, num_kv_heads: int, head_dim: int) -> Tiled:
    """Means of all segments, as large as those of 16 normal keys."""
    return draw.normal(pages, num_kv_heads, SEGMENTS, head_dim, scale=0.25, period=PERIOD)


def drawn_queries(draw: Draw, n: int, num_heads: int, head_dim: int, scale: float = 2.0) -> Tiled:
    """float32 [n, heads, d]."""
    return draw.normal(n, num_heads, head_dim, scale=scale, period=PERIOD)


def drawn_blocks(draw: Draw, slots: np.ndarray, num_kv_heads: int, budget: int) -> Tiled:
    """int32 [n, kv_heads, budget]: each row's own block and some before it, ascending, then -1."""
    selected = np.full((len(slots), num_kv_heads, budget), -1, np.int32)
    for row, slot in enumerate(slots):
        own = int(slot) // PAGE_SIZE
        for head in range(num_kv_heads):
            others = draw.random.permutation(own)[: draw.random.integers(min(budget, own + 1))]
            selected[row, head, : len(others) + 1] = [*np.sort(others), own]
    return Tiled.whole(selected)
