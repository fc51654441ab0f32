"""The merge of a row's splits without a launch of its own: the last of their workgroups to end does
it. Many are merged in two rounds, those of a team first, so that no workgroup reads them all.

Only for GPUs whose workgroups see what others wrote while they run (`GpuTraits.meets`).
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights.packing import QUAD
from minicpm_mlc.ops.gpu.attend_parts import Parts
from minicpm_mlc.ops.gpu.attend_tiles import LEAST, THREADS, WORKGROUPS
from minicpm_mlc.ops.gpu.intrinsics import last_to_come
from minicpm_mlc.ops.gpu.kernel import accumulate, barrier, registers, store_run
from minicpm_mlc.ops.gpu.quantize_rows import quantiser, read_quad
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

AT_ONCE = 16  # the most splits that are merged in one round
TEAM = 8  # splits of a team, where there are more
AHEAD = 4  # splits that a thread asks for before it uses the first
FOUR = 4  # neighbouring components of a thread


@dataclass(frozen=True)
class LastMerge:
    """One workgroup's part in it: `group` heads from `head` on of a row, the pair-th of all rows'
    key/value heads. `room`: shared float32 for all their components.
    """

    parts: Parts
    row: Expr
    pair: Expr
    head: Expr
    group: int
    thread: Expr
    room: Buffer

    def emit(
        self, split: Expr, splits: Expr, out: Buffer, factor: int | None, traits: GpuTraits
    ) -> None:
        """To out[row, head * d + i], or to words of quantize_rows with this sum_factor, by the last
        workgroup of the row's; behind `parts.put` of all.
        """
        size = T.Bind(T.Select(splits <= AT_ONCE, 1, TEAM))
        teams, here = T.Bind((splits + size - 1) // size), registers(1, "int32", 1)
        merge = _Merge(self)
        with T.If(size > 1), T.Then():
            team = T.Bind(split // TEAM)
            first = T.Bind(team * TEAM)
            members = T.Bind(T.min(splits - first, TEAM))
            T.buffer_store(here, last_to_come(self.pair * teams + team, members), [0])
            with T.If(here[0] != 0), T.Then():
                merge.add(first, T.int32(1), members)
                barrier()  # the first one's maximum has been read
                merge.put(first)
        with T.If(here[0] != 0), T.Then():
            T.buffer_store(here, last_to_come(WORKGROUPS + self.pair, teams), [0])
            with T.If(here[0] != 0), T.Then():
                merge.add(T.int32(0), size, teams)
                merge.write(out, factor, traits)


class _Merge:
    """A thread's components of the heads, four neighbouring ones at a time, with a running maximum
    and sum.
    """

    def __init__(self, last: LastMerge) -> None:
        self.last, self.d = last, int(last.parts.outputs.shape[-1])
        across = self.d // FOUR
        self.fours = last.group * across
        self.own = -(-self.fours // THREADS)
        self.numbers = [T.Bind(last.thread + j * THREADS) for j in range(self.own)]
        inside = [T.Bind(T.min(number, self.fours - 1)) for number in self.numbers]
        self.heads = [T.Bind(last.head + number // across) for number in inside]
        self.firsts = [T.Bind(number % across * FOUR) for number in inside]
        self.values = registers(FOUR * self.own)
        self.best, self.sum = registers(self.own), registers(self.own)

    def add(self, first: Expr, step: Expr, count: Expr) -> None:
        """Splits first, first + step, .. of so many."""
        for j in range(self.own):
            T.buffer_store(self.best, T.float32(LEAST), [j])
            T.buffer_store(self.sum, T.float32(0), [j])
            for c in range(FOUR):
                T.buffer_store(self.values, T.float32(0), [FOUR * j + c])
        read = registers(FOUR * AHEAD * self.own)
        maxima, sums = registers(AHEAD * self.own), registers(AHEAD * self.own)
        with T.serial(T.max((count + AHEAD - 1) // AHEAD, 1)) as turn:
            for a in range(AHEAD):
                number = T.Bind(turn * AHEAD + a)
                split = T.Bind(first + T.min(number, count - 1) * step)
                for j, (head, component) in enumerate(zip(self.heads, self.firsts, strict=True)):
                    at, to = (split, self.last.row, head), a * self.own + j
                    four = self.last.parts.outputs[(*at, T.ramp(component, 1, FOUR))]
                    T.buffer_store(read, four, [T.ramp(FOUR * to, 1, FOUR)])
                    best = self.last.parts.maxima[at]
                    T.buffer_store(maxima, T.Select(number < count, best, T.float32(LOWEST)), [to])
                    T.buffer_store(sums, self.last.parts.sums[at], [to])
            for j in range(self.own):
                self._fold(j, read, maxima, sums)

    def _fold(self, j: int, read: Buffer, maxima: Buffer, sums: Buffer) -> None:
        """AHEAD splits into the j-th four components."""
        at = [a * self.own + j for a in range(AHEAD)]
        best, weigh = registers(1), self.last.parts.weigh
        T.buffer_store(best, self.best[j], [0])
        for place in at:
            T.buffer_store(best, T.max(best[0], maxima[place]), [0])
        decay = T.Bind(weigh(self.best[j] - best[0]))
        T.buffer_store(self.best, best[0], [j])
        T.buffer_store(self.sum, self.sum[j] * decay, [j])
        for c in range(FOUR * j, FOUR * (j + 1)):
            T.buffer_store(self.values, self.values[c] * decay, [c])
        for place in at:
            weight = T.Bind(weigh(maxima[place] - best[0]))
            accumulate(self.sum, j, weight * sums[place])
            for c in range(FOUR):
                accumulate(self.values, FOUR * j + c, weight * read[FOUR * place + c])

    def _here(self, j: int) -> Expr:
        """Whether the thread has a j-th four components."""
        return self.numbers[j] < self.fours

    def put(self, split: Expr) -> None:
        """In the place of this split."""
        for j in range(self.own):
            four = registers(FOUR)
            for c in range(FOUR):
                T.buffer_store(four, self.values[FOUR * j + c], [c])
            at = [split, self.last.row, self.heads[j]]
            with T.If(self._here(j)), T.Then():
                self.last.parts.put(at, self.firsts[j], four, self.best[j], self.sum[j])

    def write(self, out: Buffer, factor: int | None, traits: GpuTraits) -> None:
        """As the row's result."""
        last, column = self.last, T.Bind(self.last.head * self.d)
        for j in range(self.own):
            four, inverse = registers(FOUR), registers(1)
            T.buffer_store(inverse, T.float32(1) / self.sum[j], [0])
            for c in range(FOUR):
                T.buffer_store(four, self.values[FOUR * j + c] * inverse[0], [c])
            with T.If(self._here(j)), T.Then():
                if factor is None:
                    at = T.Bind(column + self.numbers[j] * FOUR)
                    store_run(out, four, [last.row], at)
                else:
                    store_run(last.room, four, [], T.Bind(self.numbers[j] * FOUR))
        if factor is not None:
            barrier()
            self._round(out, column, factor, traits)

    def _round(self, out: Buffer, column: Expr, factor: int, traits: GpuTraits) -> None:
        last, width = self.last, self.last.group * self.d
        words = quantiser(traits)(column + width, factor, last.thread, THREADS)
        size = THREADS * words.each
        for start in range(0, width, size):
            first = T.Bind((column + start) // QUAD)
            words.write(
                out,
                last.row,
                first,
                lambda to, at, i: read_quad(to, at, last.room, [], T.Bind(i - column)),
            )
