"""Which blocks a query reads: the first ones, the local ones, and the best of the rest.

Scores are never negative, so their bits order like integers: the k-th largest is found by binary
search on the bits, 31 counts over the row, and one pass then collects in index order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.select_blocks import SelectBlocks
from minicpm_mlc.ops.tir import Buffer, Expr, T


def select_blocks(
    operator: SelectBlocks,
    _: CpuTraits,
    dims: Dims,
    pooled: Buffer,
    positions: Buffer,
    selected: Buffer,
) -> None:
    """A row and key/value head a task."""
    budget, free, first = operator.budget, operator.free, operator.init_blocks
    local = operator.window_blocks

    def select(row: Expr, head: Expr) -> None:
        own = T.Bind(positions[row] // PAGE_SIZE)

        def put(place: Expr, block: Expr) -> None:
            T.buffer_store(selected, block, [row, head, place])

        with T.If(own < budget):
            with T.Then(), T.serial(budget) as place:
                put(place, T.Select(place <= own, place, -1))
            with T.Else():
                with T.serial(first) as block:
                    put(block, block)
                if free:
                    Candidates(pooled, row, head, first, T.Bind(own - local)).collect(free, put)
                with T.serial(local + 1) as block:
                    put(first + free + block, own - local + block)

    each_row_and_head(dims.n, operator.num_kv_heads, select, serial_below=8)


def each_row_and_head(
    n: Expr, heads: int, body: Callable[[Expr, Expr], None], serial_below: int
) -> None:
    """Run body(row, head) for each of n rows and `heads` heads, neighbouring rows on one thread."""
    vector.spread(
        n * heads, lambda task: body(T.Bind(task // heads), T.Bind(task % heads)), serial_below
    )


@dataclass(frozen=True)
class Candidates:
    """The blocks begin .. end-1 of one row and head, which compete by score."""

    pooled: Buffer
    row: Expr
    head: Expr
    begin: int
    end: Expr

    def collect(self, count: int, put: Callable[[Expr, Expr], None]) -> None:
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

    def kth_largest(self, k: int) -> Expr:
        """Bits of the k-th largest score: the largest number that at least k scores reach."""
        threshold = T.alloc_buffer((1,), "int32")
        T.buffer_store(threshold, 0, [0])
        with T.serial(31) as step:
            higher = T.Bind(T.bitwise_or(threshold[0], T.shift_left(1, 30 - step)))
            enough = self.count_at_least(higher) >= k
            T.buffer_store(threshold, T.Select(enough, higher, threshold[0]), [0])
        return T.Bind(threshold[0])

    def count_at_least(self, threshold: Expr) -> Expr:
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
