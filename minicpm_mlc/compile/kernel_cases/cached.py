"""Samples of the operators that read and write pages of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.compile.kernel_cases.sample import (
    EXACT,
    ROUNDED,
    SUMS,
    Sample,
    ids,
    new,
    normal,
)
from minicpm_mlc.ops.cpu.attend import attend_definition
from minicpm_mlc.ops.cpu.attend_blocks import attend_blocks_definition
from minicpm_mlc.ops.cpu.attend_tree import attend_tree_blocks_definition, attend_tree_definition
from minicpm_mlc.ops.cpu.score_blocks import score_blocks_definition
from minicpm_mlc.ops.cpu.score_tree import score_tree_definition
from minicpm_mlc.ops.cpu.select_blocks import select_blocks_definition
from minicpm_mlc.ops.formats.kv import F32, KVFormat
from minicpm_mlc.ops.formats.tree import TAIL_PAGES, ancestor_masks

TABLE = [4, 0, 3, 2]  # pages of a sequence, of the five there are
OTHER = [1, 2, 0, 3]  # of another that shares some
SLOTS = [70, 250]  # rows: of the second page, and in the midst of the last
BASE = 127  # a tree over the end of the second page
PARENTS = [-1, 0, 0]
DEPTHS = [0, 1, 1]
PERIOD = 40  # components of a head that differ
SCORED = 131  # pages whose scores are compared: more than a selection has


class Pools:
    """Keys and values as kernels take them, and what they stand for, float64."""

    def __init__(self, kv_heads: int, head_dim: int, kv: KVFormat) -> None:
        self.pages, self.kv_heads, self.head_dim = 1 + max(TABLE), kv_heads, head_dim
        numbers = _repeated(2, self.pages, PAGE_SIZE, kv_heads, head_dim).array()
        k, v = numbers.swapaxes(2, 3)  # [pages, kv_heads, 64, d]
        keys, values = kv.pack(k.swapaxes(2, 3), v)
        period = keys.shape[2] if kv.scale_rows else PERIOD  # scales lie behind the keys
        self.stored = [
            Tiled(keys[:, :, :period], keys.shape),
            Tiled(values[..., :PERIOD], values.shape),
        ]
        self.read = kv.read(keys, values)

    def queries(self, n: int, num_heads: int) -> Tiled:
        return _repeated(n, num_heads, self.head_dim)

    @property
    def means(self) -> Tiled:
        """float32 [pages, kv_heads, 4, d]: all segments' means."""
        keys = self.read[0].reshape(self.pages, self.kv_heads, self.head_dim, SEGMENTS, -1)
        return Tiled.whole(keys.mean(-1).swapaxes(-1, -2).astype(np.float32))

    def copies(self) -> tuple[np.ndarray, np.ndarray]:
        keys, values = self.stored
        return keys.array(), values.array()


new_pools = cache(Pools)


def _repeated(*shape: int) -> Tiled:
    """float32 normal numbers, the last axis repeated."""
    return Tiled(normal(*shape[:-1], min(PERIOD, shape[-1])), shape)


def tables(batched: bool) -> Tiled:
    """Page tables of two sequences, or of one."""
    return ids(TABLE, OTHER) if batched else ids(TABLE)


def attend_prefill(kernels: Any, num_heads: int, *shape: Any) -> Iterator[Sample]:
    yield from _attend(kernels, num_heads, shape, batched=False)


def attend_decode(kernels: Any, num_heads: int, *shape: Any) -> Iterator[Sample]:
    yield from _attend(kernels, num_heads, shape, batched=True)


def _attend(
    kernels: Any, num_heads: int, shape: tuple[Any, ...], batched: bool
) -> Iterator[Sample]:
    pools, table = new_pools(*shape), tables(batched)
    q = pools.queries(2, num_heads)
    answer = attend_definition(q.array(), *pools.read, table.tile, np.array(SLOTS))
    yield new([q, *pools.stored, table, ids(*SLOTS)], answer, _limit(kernels, shape[2]))


def _limit(kernels: Any, kv: KVFormat) -> float:
    return ROUNDED if kv.multiplied_as_bfloat16(kernels.bf16_dot) else SUMS


def attend_blocks(
    kernels: Any,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    kv: KVFormat,
    budget: int,
    batched: bool,
) -> Iterator[Sample]:
    pools, table = new_pools(kv_heads, head_dim, kv), tables(batched)
    q, selected = pools.queries(2, num_heads), _selected(SLOTS, kv_heads, budget)
    answer = attend_blocks_definition(q.array(), *pools.read, table.tile, np.array(SLOTS), selected)
    yield new(
        [q, *pools.stored, table, ids(*SLOTS), Tiled.whole(selected)],
        answer,
        _limit(kernels, kv),
    )


def _selected(slots: list[int], kv_heads: int, budget: int) -> np.ndarray:
    """The first and the own block for the first head, one more for each further head."""
    selected = np.full((len(slots), kv_heads, budget), -1, np.int32)
    for row, slot in enumerate(slots):
        own = slot // PAGE_SIZE
        for head in range(kv_heads):
            blocks = [*range(1 + min(head, own)), own]
            chosen = sorted(set(blocks))[-budget:]
            selected[row, head, : len(chosen)] = chosen
    return selected


def attend_tree(kernels: Any, num_heads: int, *shape: Any) -> Iterator[Sample]:
    pools, (table, base, ancestors) = new_pools(*shape), _tree()
    q = pools.queries(len(PARENTS), num_heads)
    answer = attend_tree_definition(q.array(), *pools.read, table.tile, base.tile, ancestors.tile)
    yield new([q, *pools.stored, table, base, ancestors], answer, _limit(kernels, shape[2]))


def attend_tree_blocks(
    kernels: Any, num_heads: int, kv_heads: int, head_dim: int, kv: KVFormat, budget: int
) -> Iterator[Sample]:
    pools, (table, base, ancestors) = new_pools(kv_heads, head_dim, kv), _tree()
    q, selected = (
        pools.queries(len(PARENTS), num_heads),
        _selected([BASE + depth for depth in DEPTHS], kv_heads, budget),
    )
    answer = attend_tree_blocks_definition(
        q.array(), *pools.read, table.tile, base.tile, ancestors.tile, selected
    )
    yield new(
        [q, *pools.stored, table, base, ancestors, Tiled.whole(selected)],
        answer,
        _limit(kernels, kv),
    )


def _tree() -> tuple[Tiled, Tiled, Tiled]:
    """Page table, first slot and ancestor masks."""
    return tables(False), ids(BASE), Tiled.whole(ancestor_masks(PARENTS))


def score_blocks(
    _: Any, num_heads: int, kv_heads: int, head_dim: int, batched: bool
) -> Iterator[Sample]:
    pools, table = new_pools(kv_heads, head_dim, F32), tables(batched)
    q, means = pools.queries(2, num_heads), pools.means
    answer = score_blocks_definition(q.array(), means.tile, table.tile, np.array(SLOTS))
    yield new([q, means, table, ids(*SLOTS)], answer)


def score_tree(_: Any, num_heads: int, kv_heads: int, head_dim: int) -> Iterator[Sample]:
    pools, (table, base, _ancestors) = new_pools(kv_heads, head_dim, F32), _tree()
    q, means, positions = (
        pools.queries(len(PARENTS), num_heads),
        pools.means,
        ids(*(BASE + depth for depth in DEPTHS)),
    )
    own = Tiled.whole(0.25 * normal(len(PARENTS), TAIL_PAGES, kv_heads, SEGMENTS, head_dim))
    answer = score_tree_definition(
        q.array(), means.tile, own.tile, table.tile, positions.tile, base.tile
    )
    yield new([q, means, own, table, positions, base], answer)


def select_blocks(
    _: Any, kv_heads: int, topk: int, window_blocks: int, init_blocks: int
) -> Iterator[Sample]:
    pooled = Tiled.whole(np.abs(normal(3, kv_heads, SCORED)))
    positions = ids(100, 60 * PAGE_SIZE + 5, SCORED * PAGE_SIZE - 1)
    answer = select_blocks_definition(pooled.tile, positions.tile, topk, window_blocks, init_blocks)
    yield new([pooled, positions], answer, EXACT, "int32")
