"""InfLLM-v2's selection: which blocks a query reads, by their scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.intrinsics import kept, tile
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
HELD = 4096  # blocks whose scores fit in registers; those of longer contexts are read again
ROOM = 64  # more scores than are chosen that a first, coarse threshold may leave
COARSE = 8  # pairs of bits of that one: the exponent and as many more
WARP = 32
WARPS = THREADS // WARP


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
    threads = Threads(thread, traits.quads)  # OpenCL wants shared memory outside of branches
    room = [shared((THREADS,), "int32") for _ in range(2)] if held else None

    def put(place: Expr, block: Expr) -> None:
        T.buffer_store(selected, block, [row, head, initial + place])

    with T.If(own < budget):
        with T.Then(), strided(budget, thread, THREADS) as place:
            put(place - initial, T.Select(place <= own, place, -1))
        with T.Else():
            with strided(initial, thread, THREADS) as block:
                put(block - initial, block)
            with strided(local + 1, thread, THREADS) as block:
                put(free + block, own - local + block)
            if free:
                read = lambda block: T.reinterpret(pooled[row, head, block], dtype="int32")  # noqa: E731
                Candidates(threads, read, initial, T.Bind(own - local), room).collect(free, put)


class Threads:
    """What the threads of a workgroup tell each other. `warps`: whether 32 of them do so without
    shared memory.
    """

    def __init__(self, thread: Expr, warps: bool) -> None:
        self.thread, self.warps = thread, warps
        self.counts = shared((DIGITS * THREADS,), "int32"), shared((DIGITS * FEW,), "int32")

    def totals(self, values: list[Expr]) -> list[Expr]:
        """The sum over all threads of each of up to DIGITS int32 numbers."""
        if self.warps:
            barrier()  # the sums before were read
            for i, value in enumerate(values):
                self._keep(self._of_warp("warp_sum_int", value), i, self.thread % WARP == 0)
            barrier()
        else:
            self._sum_by_few(values)
        return [self._total(i) for i in range(len(values))]

    def flagged(self, flags: list[Expr]) -> list[Expr]:
        """How many threads have each of the flags, which are 0 or 1."""
        if not self.warps:
            return self.totals(flags)
        return [self._of_warp("threads_with", flag) for flag in flags]

    def before(self, value: Expr) -> tuple[Expr, Expr]:
        """(sum over the threads before this one, over all)."""
        sums, own = registers(2, "int32", 0), T.Bind(self.thread // (WARP if self.warps else FEW))
        if self.warps:
            own = kept(own)  # else what is compared with it would be kept from sum to sum
            inside = self._of_warp("warp_sum_before", value)
            barrier()  # the sums before were read
            self._keep(T.Bind(inside + value), 0, self.thread % WARP == WARP - 1)
            barrier()
            T.buffer_store(sums, inside, [0])
        else:
            self._sum_by_few([value])
            with T.serial(self.thread % FEW) as t:
                accumulate(sums, 0, self.counts[0][own * FEW + t])
        for part in range(WARPS if self.warps else FEW):
            accumulate(sums, 0, T.Select(part < own, self.counts[1][part], 0))
            accumulate(sums, 1, self.counts[1][part])
        barrier()  # before the counts are written again
        return T.Bind(sums[0]), T.Bind(sums[1])

    def _of_warp(self, name: str, value: Expr) -> Expr:
        """A function's result in a register, so that all threads call it here."""
        result = registers(1, "int32")
        T.buffer_store(result, tile("int32", name, value), [0])
        return result[0]

    def _keep(self, value: Expr, i: int, here: Expr) -> None:
        """A warp's i-th number, by one thread."""
        with T.If(here), T.Then():
            T.buffer_store(self.counts[1], value, [i * FEW + self.thread // WARP])

    def _total(self, which: int) -> Expr:
        total = registers(1, "int32", 0)
        for part in range(WARPS if self.warps else FEW):
            accumulate(total, 0, self.counts[1][which * FEW + part])
        return T.Bind(total[0])

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


@dataclass(frozen=True)
class Run:
    """A thread's scores, by the order of their blocks: `own` of them, bits(step) of block(step).
    `held`: the bits in registers, -1 behind the last, which is lower than every score's.
    """

    own: Expr
    bits: Callable[[Expr], Expr]
    block: Callable[[Expr], Expr]
    held: Buffer | None = None


class Candidates:
    """The blocks begin .. end-1 of one row and head, a run of them for each thread; scores compare
    as their bits do.

    `read` gives a block's bits; `room`: shared memory for those few that a coarse threshold leaves,
    where all are held.
    """

    def __init__(
        self,
        threads: Threads,
        read: Callable[[Expr], Expr],
        begin: int,
        end: Expr,
        room: list[Buffer] | None,
    ) -> None:
        self.threads, self.room, thread = threads, room, threads.thread
        run = T.Bind((end - begin + THREADS - 1) // THREADS)
        first = T.Bind(T.min(begin + thread * run, end))
        own, block = T.Bind(T.min(first + run, end) - first), lambda step: first + step
        held = registers(HELD // THREADS, "int32", -1) if room else None
        self.all = Run(own, lambda step: T.Bind(read(T.Bind(first + step))), block, held)
        for step in range(HELD // THREADS if room else 0):
            with T.If(step < own), T.Then():
                T.buffer_store(held, read(first + step), [step])

    def collect(self, count: int, put: Callable[[Expr, Expr], None]) -> None:
        """put(place, block) for the `count` best, ascending; ties go to the lower block."""
        held, room = self.all.held, self.room
        if held is None or room is None:
            self._collect(self.all, count, put)
            return
        mine = registers(3, "int32", -1)  # best, how many, the next's place
        for step in range(HELD // THREADS):
            T.buffer_store(mine, T.max(mine[0], held[step]), [0])
        # at least as many scores reach it as threads whose best does
        bound = self._kth_largest(self._one(mine[0]), count, ROOM)
        T.buffer_store(mine, 0, [1])
        for step in range(HELD // THREADS):
            accumulate(mine, 1, T.Select(held[step] >= bound, 1, 0))
        before, left = self.threads.before(mine[1])
        with T.If(left <= THREADS):
            with T.Then():
                T.buffer_store(mine, before, [2])
                self._collect(self._those(held, room, bound, mine, left), count, put)
            with T.Else():
                self._collect(self.all, count, put)

    def _one(self, bits: Expr, block: Expr = 0) -> Run:
        """One score of each thread, or -1."""
        held = registers(1, "int32")
        T.buffer_store(held, bits, [0])
        return Run(T.int32(1), lambda _: held[0], lambda _: block, held)

    def _those(
        self, held: Buffer, room: list[Buffer], bound: Expr, mine: Buffer, left: Expr
    ) -> Run:
        """The scores that reach the bound, by their order one for each thread."""
        (scores, blocks), thread = room, self.threads.thread
        for step in range(HELD // THREADS):
            with T.If(held[step] >= bound), T.Then():
                T.buffer_store(scores, held[step], [mine[2]])
                T.buffer_store(blocks, self.all.block(step), [mine[2]])
                T.buffer_store(mine, mine[2] + 1, [2])
        barrier()
        return self._one(T.if_then_else(thread < left, scores[thread], -1), T.Bind(blocks[thread]))

    def _collect(self, run: Run, count: int, put: Callable[[Expr, Expr], None]) -> None:
        threshold = self._kth_largest(run, count, 0)
        above, ties = registers(1, "int32", 0), registers(1, "int32", 0)
        with T.serial(run.own) as step:
            bits = run.bits(step)
            accumulate(above, 0, T.Select(bits > threshold, 1, 0))
            accumulate(ties, 0, T.Select(bits.equal(threshold), 1, 0))
        above_before, above_all = self.threads.before(above[0])
        ties_before, _ = self.threads.before(ties[0])
        wanted = T.Bind(count - above_all)  # ties
        state = registers(2, "int32")  # place, ties so far
        T.buffer_store(state, above_before + T.min(ties_before, wanted), [0])
        T.buffer_store(state, ties_before, [1])
        with T.serial(run.own) as step:
            bits = run.bits(step)
            tie = T.Bind(bits.equal(threshold))
            chosen = T.Bind(T.Or(bits > threshold, T.And(tie, state[1] < wanted)))
            with T.If(chosen), T.Then():
                put(state[0], run.block(step))
            T.buffer_store(state, state[0] + T.Select(chosen, 1, 0), [0])
            T.buffer_store(state, state[1] + T.Select(tie, 1, 0), [1])

    def _kth_largest(self, run: Run, k: int, room: int) -> Expr:
        """A number that k scores reach, and up to `room` more, or, where equal ones are the k-th
        largest, their bits: the largest number that at least k reach; 0 where fewer are there. Two
        bits at a time, until few enough scores reach it; with room for more, only the first bits.
        """
        state = registers(2, "int32", 0)  # the number so far, whether few enough reach it
        with T.serial(COARSE if room else 16) as step, T.If(state[1].equal(0)), T.Then():
            # bits 30 and 29, .., 2 and 1, 1 and 0: bit 1 stays as it was found
            shift = T.Bind(T.max(29 - 2 * step, 0))
            tried = [
                T.Bind(T.bitwise_or(state[0], T.shift_left(digit + 1, shift)))
                for digit in range(DIGITS)
            ]
            for number, reached in zip(tried, self._reached(run, tried), strict=True):
                enough, few = T.Bind(reached >= k), T.Select(reached <= k + room, 1, 0)
                T.buffer_store(state, T.Select(enough, few, state[1]), [1])
                T.buffer_store(state, T.Select(enough, number, state[0]), [0])
        return T.Bind(state[0])

    def _reached(self, run: Run, numbers: list[Expr]) -> list[Expr]:
        """How many scores reach each of the numbers."""
        if run.held is not None and int(run.held.shape[0]) == 1:
            flags = [T.Bind(T.Select(run.held[0] >= number, 1, 0)) for number in numbers]
            return self.threads.flagged(flags)
        reach = registers(DIGITS, "int32", 0)

        def add(bits: Expr) -> None:
            for i, number in enumerate(numbers):
                accumulate(reach, i, T.Select(bits >= number, 1, 0))

        if run.held is None:
            with T.serial(run.own) as step:
                add(run.bits(step))
        else:
            for i in range(int(run.held.shape[0])):
                add(run.held[i])
        return self.threads.totals([reach[digit] for digit in range(DIGITS)])
