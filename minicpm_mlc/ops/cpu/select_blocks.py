"""Which blocks a query reads: the first ones, the local ones, and the best of the rest.

Scores are never negative, so their bits order like integers: the k-th largest is found by binary
search on the bits, 31 counts over the row, and one pass then collects in index order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.tir import T


def select_blocks_definition(
    pooled: np.ndarray,
    positions: np.ndarray,
    topk: int,
    window_blocks: int,
    init_blocks: int,
    block_size: int = PAGE_SIZE,
) -> np.ndarray:
    """int32 [n, kv_heads, topk + window_blocks]: ascending block numbers, then -1 where there are
    fewer blocks.

    pooled [n, kv_heads, p], positions [n]. Blocks up to the query's own one, qb, compete: the first
    `init_blocks` and those from qb - window_blocks on always win, the rest go by score, ties to the
    lower block.
    """
    budget = topk + window_blocks
    selected = np.full((*pooled.shape[:2], budget), -1, np.int32)
    for row, position in enumerate(positions):
        own = position // block_size
        blocks = np.arange(own + 1)
        forced = (blocks < init_blocks) | (blocks >= own - window_blocks)
        for head, scores in enumerate(pooled[row, :, : own + 1]):
            best = np.lexsort((blocks, -scores, ~forced))[:budget]
            selected[row, head, : len(best)] = np.sort(best)
    return selected


def select_blocks(num_kv_heads: int, topk: int, window_blocks: int, init_blocks: int) -> Any:
    """PrimFunc (pooled f32[n, k, p], positions i32[n]) -> selected i32[n, k, topk + window_blocks].

    As in select_blocks_definition. Scores must not be negative. Raises CompileError where topk
    leaves no room for the initial blocks and the query's own.
    """
    if topk <= init_blocks:
        raise CompileError(
            f"sparse_config: topk {topk} must exceed init_blocks {init_blocks}, or a query's own "
            "block has no place"
        )
    budget = topk + window_blocks
    free = topk - init_blocks - 1

    def select(row: Any, head: Any, pooled: Any, positions: Any, selected: Any) -> None:
        own = T.Bind(positions[row] // PAGE_SIZE)

        def put(place: Any, block: Any) -> None:
            T.buffer_store(selected, block, [row, head, place])

        with T.If(own < budget):
            with T.Then(), T.serial(budget) as place:
                put(place, T.Select(place <= own, place, -1))
            with T.Else():
                with T.serial(init_blocks) as block:
                    put(block, block)
                if free:
                    candidates = Candidates(
                        pooled, row, head, init_blocks, T.Bind(own - window_blocks)
                    )
                    candidates.collect(free, put)
                with T.serial(window_blocks + 1) as block:
                    put(init_blocks + free + block, own - window_blocks + block)

    @T.prim_func(private=True)
    def select_blocks(
        pooled_handle: T.handle, positions_handle: T.handle, selected_handle: T.handle
    ):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        p = T.int64()
        pooled = T.match_buffer(pooled_handle, (n, num_kv_heads, p), "float32")
        positions = T.match_buffer(positions_handle, (n,), "int32")
        selected = T.match_buffer(selected_handle, (n, num_kv_heads, budget), "int32")
        each_row_and_head(
            n,
            num_kv_heads,
            lambda row, head: select(row, head, pooled, positions, selected),
            serial_below=8,
        )

    return select_blocks


def each_row_and_head(
    n: Any, heads: int, body: Callable[[Any, Any], None], serial_below: int
) -> None:
    """Run body(row, head) for each of n rows and `heads` heads, neighbouring rows on one thread."""
    vector.spread(
        n * heads, lambda task: body(T.Bind(task // heads), T.Bind(task % heads)), serial_below
    )


@dataclass(frozen=True)
class Candidates:
    """The blocks begin .. end-1 of one row and head, which compete by score."""

    pooled: Any
    row: Any
    head: Any
    begin: int
    end: Any

    def collect(self, count: int, put: Callable[[Any, Any], None]) -> None:
        """put(place, block) for the `count` best, ascending, from place `begin` on; there must be
        that many.
        """
        threshold = self.kth_largest(count)
        state = T.alloc_buffer((2,), "int32")  # places filled, ties still to take
        T.buffer_store(state, self.begin, [0])
        T.buffer_store(state, count - self.count_at_least(T.Bind(threshold + 1)), [1])
        with T.serial(self.end - self.begin) as step:
            block = T.Bind(self.begin + step)
            bits = T.Bind(T.reinterpret(self.pooled[self.row, self.head, block], dtype="int32"))
            tie = T.Bind(T.And(bits.equal(threshold), state[1] > 0))
            put(
                state[0], block
            )  # overwritten by the next one, or by a local block, unless it counts
            T.buffer_store(state, state[0] + T.Select(T.Or(bits > threshold, tie), 1, 0), [0])
            T.buffer_store(state, state[1] - T.Select(tie, 1, 0), [1])

    def kth_largest(self, k: int) -> Any:
        """Bits of the k-th largest score: the largest number that at least k scores reach."""
        threshold = T.alloc_buffer((1,), "int32")
        T.buffer_store(threshold, 0, [0])
        with T.serial(31) as step:
            higher = T.Bind(T.bitwise_or(threshold[0], T.shift_left(1, 30 - step)))
            enough = self.count_at_least(higher) >= k
            T.buffer_store(threshold, T.Select(enough, higher, threshold[0]), [0])
        return T.Bind(threshold[0])

    def count_at_least(self, threshold: Any) -> Any:
        """How many scores have bits >= threshold."""
        lanes = T.alloc_buffer((vector.LANES,), "int32")
        wide = T.ramp(0, 1, vector.LANES)
        T.buffer_store(lanes, T.broadcast(0, vector.LANES), [wide])
        whole = T.Bind((self.end - self.begin) // vector.LANES)
        with T.serial(whole) as step:
            scores = vector.load(self.pooled, self.row, self.head, self.begin + step * vector.LANES)
            above = T.reinterpret(scores, dtype="int32x16") >= T.broadcast(threshold, vector.LANES)
            one, zero = T.broadcast(1, vector.LANES), T.broadcast(0, vector.LANES)
            T.buffer_store(lanes, lanes[wide] + T.Select(above, one, zero), [wide])
        rest = T.Bind(self.begin + whole * vector.LANES)
        with T.serial(self.end - rest) as step:
            bits = T.reinterpret(self.pooled[self.row, self.head, rest + step], dtype="int32")
            T.buffer_store(lanes, lanes[0] + T.Select(bits >= threshold, 1, 0), [0])
        return vector.fold(lambda a, b: a + b, T.Bind(lanes[wide]))
