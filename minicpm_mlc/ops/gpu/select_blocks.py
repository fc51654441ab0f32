"""InfLLM-v2's selection: which blocks a query reads, by their scores."""

from __future__ import annotations

from collections.abc import Callable

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.kernel import (
    accumulate,
    barrier,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.select_blocks import SelectBlocks
from minicpm_mlc.ops.tir import Buffer, Expr, T

THREADS = 64


def select_blocks(
    operator: SelectBlocks,
    _: GpuTraits,
    dims: Dims,
    pooled: Buffer,
    positions: Buffer,
    selected: Buffer,
) -> None:
    """A row and key/value head a workgroup."""
    budget, free, initial = operator.budget, operator.free, operator.init_blocks
    local, heads = operator.window_blocks, operator.num_kv_heads
    with workgroups(dims.n * heads, THREADS) as (task, thread):
        row, head = T.Bind(task // heads), T.Bind(task % heads)
        own = T.Bind(positions[row] // PAGE_SIZE)
        # OpenCL wants shared memory outside of branches
        counts = shared((THREADS,), "int32"), shared((THREADS,), "int32")

        def put(place: Expr, block: Expr) -> None:
            T.buffer_store(selected, block, [row, head, place])

        with T.If(own < budget):
            with T.Then(), strided(budget, thread, THREADS) as place:
                put(place, T.Select(place <= own, place, -1))
            with T.Else():
                with strided(initial, thread, THREADS) as block:
                    put(block, block)
                with strided(local + 1, thread, THREADS) as block:
                    put(initial + free + block, own - local + block)
                if free:
                    scores = pooled, row, head
                    rest = Candidates(scores, counts, thread, initial, T.Bind(own - local))
                    rest.collect(free, put)


class Candidates:
    """The blocks begin .. end-1 of one row and head, a run of them for each thread; scores compare
    as their bits do.

    `scores` are the buffer, row and head, `counts` two arrays of shared memory with a number per
    thread.
    """

    def __init__(self, scores: tuple, counts: tuple, thread: Expr, begin: int, end: Expr) -> None:
        (self.pooled, self.row, self.head), self.counts = scores, counts
        self.thread, self.begin = thread, begin
        run = T.Bind((end - begin + THREADS - 1) // THREADS)
        self.first = T.Bind(T.min(begin + thread * run, end))
        self.own = T.Bind(T.min(self.first + run, end) - self.first)

    def collect(self, count: int, put: Callable[[Expr, Expr], None]) -> None:
        """put(place, block) for the `count` best, ascending, from place `begin` on; ties go to the
        lower block.
        """
        threshold = self._kth_largest(count)
        above, ties = registers(1, "int32", 0), registers(1, "int32", 0)
        with T.serial(self.own) as step:
            bits = self._bits(step)
            accumulate(above, 0, T.Select(bits > threshold, 1, 0))
            accumulate(ties, 0, T.Select(bits.equal(threshold), 1, 0))
        above_before, above_all = self._before(above[0], 0)
        ties_before, _ = self._before(ties[0], 1)
        wanted = T.Bind(count - above_all)  # ties
        state = registers(2, "int32")  # place, ties so far
        T.buffer_store(state, self.begin + above_before + T.min(ties_before, wanted), [0])
        T.buffer_store(state, ties_before, [1])
        with T.serial(self.own) as step:
            bits = self._bits(step)
            tie = T.Bind(bits.equal(threshold))
            chosen = T.Bind(T.Or(bits > threshold, T.And(tie, state[1] < wanted)))
            with T.If(chosen), T.Then():
                put(state[0], self.first + step)
            T.buffer_store(state, state[0] + T.Select(chosen, 1, 0), [0])
            T.buffer_store(state, state[1] + T.Select(tie, 1, 0), [1])

    def _bits(self, step: Expr) -> Expr:
        return T.Bind(
            T.reinterpret(self.pooled[self.row, self.head, self.first + step], dtype="int32")
        )

    def _kth_largest(self, k: int) -> Expr:
        """Bits of the k-th largest score: the largest number that at least k scores reach."""
        threshold = registers(1, "int32", 0)
        with T.serial(31) as step:
            higher = T.Bind(T.bitwise_or(threshold[0], T.shift_left(1, 30 - step)))
            reach = registers(1, "int32", 0)
            with T.serial(self.own) as i:
                accumulate(reach, 0, T.Select(self._bits(i) >= higher, 1, 0))
            _, enough = self._before(reach[0], 0)
            T.buffer_store(threshold, T.Select(enough >= k, higher, threshold[0]), [0])
        return T.Bind(threshold[0])

    def _before(self, value: Expr, which: int) -> tuple[Expr, Expr]:
        """(sum over the threads before this one, over all)."""
        counts, sums = self.counts[which], registers(2, "int32", 0)
        T.buffer_store(counts, value, [self.thread])
        barrier()
        with T.serial(THREADS) as t:
            accumulate(sums, 0, T.Select(t < self.thread, counts[t], 0))
            accumulate(sums, 1, counts[t])
        barrier()
        return T.Bind(sums[0]), T.Bind(sums[1])
