"""Activations rounded to int8 per row and group of 32 columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.packing import QUAD
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import THREADS, barrier, registers, shared, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.gpu.whole_numbers import WHOLE, WHOLE_BITS
from minicpm_mlc.ops.quantize_rows import (
    LARGEST,
    SCALE,
    SMALLEST,
    SUM,
    QuantizeRows,
    factors_of,
)
from minicpm_mlc.ops.tir import Buffer, Expr, T

WORDS = GROUP // QUAD  # of a group
# (registers, which of them, column): four neighbouring columns' float32 to registers from there on
Read = Callable[[Buffer, int, Expr], None]


def quantize_rows(
    operator: QuantizeRows, traits: GpuTraits, dims: Dims, x: Buffer, out: Buffer
) -> None:
    """A workgroup takes some hundred columns of a row. Raises CompileError when its columns aren't
    a multiple of 32.
    """
    columns = operator.columns
    if columns % GROUP:
        raise CompileError(
            f"a linear layer has {columns} inputs; the GPU kernels need a multiple of {GROUP}"
        )
    words = quantiser(traits)
    size = THREADS * words.each
    parts = -(-columns // size)
    with workgroups(dims.m * parts) as (group, thread):
        row, first = T.Bind(group // parts), T.Bind(group % parts * (size // QUAD))
        rounds = words(columns, operator.sum_factor, thread, THREADS)
        rounds.write(out, row, first, lambda to, at, column: read_quad(to, at, x, [row], column))


def read_quad(to: Buffer, at: int, source: Buffer, index: list[Expr], column: Expr) -> None:
    """source[index, column .. column + 3] to registers from `at` on, by one load."""
    T.buffer_store(to, source[(*index, T.ramp(column, 1, QUAD))], [T.ramp(at, 1, QUAD)])


def quantiser(traits: GpuTraits) -> type[Quantiser]:
    """How a device's workgroups round."""
    return QuadQuantiser if traits.quads else Quantiser


class Quantiser:
    """Rounds a row's columns by all threads of a workgroup, `each` so many neighbouring ones."""

    each: ClassVar[int] = QUAD

    def __init__(self, columns: Expr, factor: int, thread: Expr, threads: int) -> None:
        self.columns, self.factors, self.thread = columns, factors_of(factor), thread
        self.prepare(threads)

    def prepare(self, threads: int) -> None:
        """Memory that the threads of a group exchange numbers by."""
        self.largest, self.sums = shared((threads,), "int32"), shared((threads,), "int32")

    def write(self, out: Buffer, row: Expr, first: Expr, read: Read) -> None:
        """From the word `first` on, a multiple of 8, those of all threads."""
        each, own = self.each, self.each // QUAD
        word = T.Bind(first + self.thread * own)
        here = T.Bind(word < self.columns // QUAD)
        values, bits = registers(each, value=0.0), registers(each, "int32")
        with T.If(here), T.Then():
            for i in range(own):
                read(values, i * QUAD, T.Bind((word + i) * QUAD))
        largest = T.Bind(T.reinterpret(self.group_largest(_largest(values)), dtype="float32"))
        inverse = registers(1)  # so that it isn't computed again for each number
        quotient = T.float32(LARGEST) / largest
        quotient = T.Select(largest < constant(SMALLEST), T.float32(0), quotient)
        T.buffer_store(inverse, quotient, [0])
        for i in range(each):
            T.buffer_store(values, values[i] * inverse[0], [i])  # a statement: no fused addition
            T.buffer_store(values, values[i] + constant(WHOLE), [i])  # rounds
            T.buffer_store(bits, T.reinterpret(values[i], dtype="int32") - WHOLE_BITS, [i])
        g, place = T.Bind(word // WORDS), T.Bind(word % WORDS)
        low, high = self.factors
        factor = low if low == high else T.Select(place < WORDS // 2, low, high)
        total = sum((bits[i] for i in range(1, each)), bits[0])
        total = self.group_sum(T.Bind(total * factor))
        with T.If(here), T.Then():
            for i in range(own):
                T.buffer_store(out, _packed(bits, i * QUAD), [row, g, place + i])
            with T.If(place.equal(0)), T.Then():
                scale = registers(1)
                T.buffer_store(scale, largest / T.float32(LARGEST), [0])
                T.buffer_store(out, T.reinterpret(scale[0], dtype="int32"), [row, g, SCALE])
                T.buffer_store(out, total(), [row, g, SUM])
        self.finish()

    def group_largest(self, own: Expr) -> Expr:
        """The largest int32 of a group's threads, for each of them."""
        best, start = registers(1, "int32", 0), T.Bind(self.thread // WORDS * WORDS)
        T.buffer_store(self.largest, own, [self.thread])
        barrier()
        for i in range(WORDS):
            T.buffer_store(best, T.max(best[0], self.largest[start + i]), [0])
        return best[0]

    def group_sum(self, own: Expr) -> Callable[[], Expr]:
        """What gives the sum of a group's threads to its first one."""
        T.buffer_store(self.sums, own, [self.thread])
        barrier()
        sums, thread = self.sums, self.thread
        return lambda: sum((sums[thread + i] for i in range(1, WORDS)), sums[thread])

    def finish(self) -> None:
        """Before the shared memory is used again."""
        barrier()


class QuadQuantiser(Quantiser):
    """The same where a group's columns are those of four threads, which need no shared memory."""

    each = GROUP // 4

    def prepare(self, threads: int) -> None:
        pass

    def group_largest(self, own: Expr) -> Expr:
        return self._of_quad("quad_max_int", own)[0]

    def group_sum(self, own: Expr) -> Callable[[], Expr]:
        total = self._of_quad("quad_sum_int", own)
        return lambda: total[0]

    def _of_quad(self, name: str, own: Expr) -> Buffer:
        """A register, so that all threads call the function here, not where its result is used."""
        result = registers(1, "int32")
        T.buffer_store(result, tile("int32", name, own), [0])
        return result

    def finish(self) -> None:
        pass


def _largest(values: Buffer) -> Expr:
    """The bits of the largest |x|: the same order as floats, but a NaN is the largest instead of
    vanishing.
    """
    best = registers(1, "int32", 0)
    for i in range(int(values.shape[0])):
        size = T.bitwise_and(T.reinterpret(values[i], dtype="int32"), 0x7FFFFFFF)
        T.buffer_store(best, T.max(best[0], size), [0])
    return T.Bind(best[0])


def _packed(bits: Buffer, first: int) -> Expr:
    """The last byte of each of four numbers."""
    parts = [T.shift_left(T.bitwise_and(bits[first + i], 255), 8 * i) for i in range(QUAD)]
    return parts[0] | parts[1] | parts[2] | parts[3]
