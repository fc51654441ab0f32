"""InfLLM-v2's selection: which blocks a query reads, by their scores."""

from __future__ import annotations

from collections.abc import Callable

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.intrinsics import tile
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

THREADS = 256
FEW = 16  # numbers that a thread sums: of THREADS, then of their sums
DIGITS = 3  # that two bits of a threshold may have beside 0: tried together
HELD = 4096  # blocks whose scores fit in shared memory; those of longer contexts are read again
BANKS = 32  # of shared memory: a run's neighbours in them take turns
WARP = 32


def select_blocks(
    operator: SelectBlocks,
    traits: GpuTraits,
    dims: Dims,
    pooled: Buffer,
    positions: Buffer,
    selected: Buffer,
) -> None:
    """A row and key/value head a workgroup; a launch for contexts whose scores are held, or one for
    longer ones.
    """

    def launch(held: bool) -> None:
        with workgroups(dims.n * operator.num_kv_heads, THREADS) as task:
            _select(operator, traits, task, (pooled, positions, selected), held)

    with T.If(dims.p <= HELD):
        with T.Then():
            launch(True)
        with T.Else():
            launch(False)


def _select(
    operator: SelectBlocks,
    traits: GpuTraits,
    task: tuple[Expr, Expr],
    buffers: tuple[Buffer, Buffer, Buffer],
    held: bool,
) -> None:
    """What one thread of a workgroup does."""
    (group, thread), (pooled, positions, selected) = task, buffers
    budget, free, initial = operator.budget, operator.free, operator.init_blocks
    local, heads = operator.window_blocks, operator.num_kv_heads
    row, head = T.Bind(group // heads), T.Bind(group % heads)
    own = T.Bind(positions[row] // PAGE_SIZE)
    # OpenCL wants shared memory outside of branches
    counts = shared((DIGITS * THREADS,), "int32"), shared((DIGITS * FEW,), "int32")
    room = shared((HELD + HELD // BANKS,), "int32") if held else None

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
                given = (pooled, row, head), counts, thread, initial, T.Bind(own - local)
                Candidates(*given, room, traits.quads).collect(free, put)


class Candidates:
    """The blocks begin .. end-1 of one row and head, a run of them for each thread; scores compare
    as their bits do.

    `scores` are the buffer, row and head; `counts` shared memory with DIGITS numbers per thread,
    and for their sums; `held` has room for the bits of all scores, where there is room; `warps`:
    whether those of 32 threads sum without shared memory.
    """

    def __init__(
        self,
        scores: tuple,
        counts: tuple,
        thread: Expr,
        begin: int,
        end: Expr,
        held: Buffer | None,
        warps: bool,
    ) -> None:
        self.warps = warps
        (self.pooled, self.row, self.head), self.counts, self.held = scores, counts, held
        self.thread, self.begin = thread, begin
        run = T.Bind((end - begin + THREADS - 1) // THREADS)
        self.first = T.Bind(T.min(begin + thread * run, end))
        self.own = T.Bind(T.min(self.first + run, end) - self.first)
        if held is not None:
            with strided(end, thread, THREADS) as block:
                T.buffer_store(held, self._read(block), [block + block // BANKS])
            barrier()
            self.run = registers(HELD // THREADS, "int32", -1)  # lower than every score's bits
            for step in range(HELD // THREADS):
                with T.If(step < self.own), T.Then():
                    T.buffer_store(self.run, self._bits(T.int32(step)), [step])

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
        above_before, above_all = self._before(above[0])
        ties_before, _ = self._before(ties[0])
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

    def _read(self, block: Expr) -> Expr:
        """A score's bits from memory."""
        return T.reinterpret(self.pooled[self.row, self.head, block], dtype="int32")

    def _bits(self, step: Expr) -> Expr:
        """Those of a block of the thread's run."""
        block = T.Bind(self.first + step)
        read = self._read(block) if self.held is None else self.held[block + block // BANKS]
        return T.Bind(read)

    def _kth_largest(self, k: int) -> Expr:
        """A number that k scores reach, or, where equal ones are the k-th largest, their bits: the
        largest number that at least k reach. Two bits at a time, until k scores reach it.
        """
        state = registers(2, "int32", 0)  # the number so far, whether k scores reach it
        with T.serial(16) as step, T.If(state[1].equal(0)), T.Then():
            # bits 30 and 29, .., 2 and 1, 1 and 0: bit 1 stays as it was found
            shift = T.Bind(T.max(29 - 2 * step, 0))
            tried = [
                T.Bind(T.bitwise_or(state[0], T.shift_left(digit + 1, shift)))
                for digit in range(DIGITS)
            ]
            reach = registers(DIGITS, "int32", 0)
            self._count(tried, reach)
            self._sum([reach[digit] for digit in range(DIGITS)])
            for digit, number in enumerate(tried):
                reached = self._total(digit)
                enough, exactly = T.Bind(reached >= k), T.Select(reached.equal(k), 1, 0)
                T.buffer_store(state, T.Select(enough, exactly, state[1]), [1])
                T.buffer_store(state, T.Select(enough, number, state[0]), [0])
        return T.Bind(state[0])

    def _count(self, numbers: list[Expr], reach: Buffer) -> None:
        """How many of the thread's own scores reach each of the numbers."""

        def add(bits: Expr) -> None:
            for i, number in enumerate(numbers):
                accumulate(reach, i, T.Select(bits >= number, 1, 0))

        if self.held is None:
            with T.serial(self.own) as step:
                add(self._bits(step))
        else:
            for i in range(HELD // THREADS):
                add(self.run[i])

    def _sum(self, values: list[Expr]) -> None:
        """For `_total`: every thread's numbers by few, or by warps."""
        if not self.warps:
            self._sum_by_few(values)
            return
        barrier()  # the sums before were read
        for i, value in enumerate(values):
            total = registers(1, "int32")  # all lanes call it here
            T.buffer_store(total, tile("int32", "warp_sum_int", value), [0])
            with T.If((self.thread % WARP).equal(0)), T.Then():
                T.buffer_store(self.counts[1], total[0], [i * FEW + self.thread // WARP])
        barrier()

    def _total(self, which: int) -> Expr:
        """The sum over all threads of the numbers that were summed."""
        total = registers(1, "int32", 0)
        for part in range(THREADS // WARP if self.warps else FEW):
            accumulate(total, 0, self.counts[1][which * FEW + part])
        return T.Bind(total[0])

    def _before(self, value: Expr) -> tuple[Expr, Expr]:
        """(sum over the threads before this one, over all)."""
        self._sum_by_few([value])
        counts, sums = self.counts, registers(2, "int32", 0)
        own = T.Bind(self.thread // FEW)
        for part in range(FEW):
            accumulate(sums, 0, T.Select(part < own, counts[1][part], 0))
            accumulate(sums, 1, counts[1][part])
        with T.serial(self.thread % FEW) as t:
            accumulate(sums, 0, counts[0][own * FEW + t])
        barrier()  # before the counts are written again
        return T.Bind(sums[0]), T.Bind(sums[1])

    def _sum_by_few(self, values: list[Expr]) -> None:
        """Every thread's numbers to shared memory, and behind a barrier the sums of 16 threads
        each.
        """
        counts, sums = self.counts
        for i, value in enumerate(values):
            T.buffer_store(counts, value, [i * THREADS + self.thread])
        barrier()
        with T.If(self.thread < len(values) * FEW), T.Then():
            total = registers(1, "int32", 0)
            for t in range(FEW):  # neighbours begin at different banks
                place = self.thread * FEW + (self.thread + t) % FEW
                accumulate(total, 0, counts[place])
            T.buffer_store(sums, total[0], [self.thread])
        barrier()
