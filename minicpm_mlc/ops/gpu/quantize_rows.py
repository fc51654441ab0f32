"""Activations rounded to int8 per row and group of 32 columns."""

from __future__ import annotations

from collections.abc import Callable

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.packing import QUAD
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import THREADS, barrier, registers, shared, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.quantize_rows import (
    LARGEST,
    SCALE,
    SMALLEST,
    SUM,
    QuantizeRows,
    factors_of,
)
from minicpm_mlc.ops.tir import Buffer, Expr, T

WORDS = GROUP // QUAD  # of a group: a thread rounds one
Read = Callable[[Expr, int], Expr]  # (column, which of its word's four) -> float32
# a float32 of this size has whole numbers as its last bits, and the addition rounds to them
WHOLE, WHOLE_BITS = 1.5 * 2.0**23, 0x4B400000


def quantize_rows(operator: QuantizeRows, _: GpuTraits, dims: Dims, x: Buffer, out: Buffer) -> None:
    """A workgroup takes 512 columns of a row. Raises CompileError when its columns aren't a
    multiple of 32.
    """
    columns = operator.columns
    if columns % GROUP:
        raise CompileError(
            f"a linear layer has {columns} inputs; the GPU kernels need a multiple of {GROUP}"
        )
    parts = -(-columns // (THREADS * QUAD))
    with workgroups(dims.m * parts) as (group, thread):
        row, first = T.Bind(group // parts), T.Bind(group % parts * THREADS)
        words = Quantiser(columns, operator.sum_factor, thread, THREADS)
        words.write(out, row, first, lambda column, _: x[row, column])


class Quantiser:
    """Rounds a row's columns by all threads of a workgroup, four columns each."""

    def __init__(self, columns: int, factor: int, thread: Expr, threads: int) -> None:
        self.columns, self.factors, self.thread = columns, factors_of(factor), thread
        self.largest, self.sums = shared((threads,), "int32"), shared((threads,), "int32")

    def write(self, out: Buffer, row: Expr, first: Expr, read: Read) -> None:
        """The words `first`, a multiple of 8, and those behind it, one for each thread."""
        word = T.Bind(first + self.thread)
        here = T.Bind(word < self.columns // QUAD)
        values, bits = registers(QUAD, value=0.0), registers(QUAD, "int32")
        with T.If(here), T.Then():
            for i in range(QUAD):
                T.buffer_store(values, read(T.Bind(word * QUAD + i), i), [i])
        largest = self._largest(values)
        inverse = T.Bind(
            T.Select(largest < constant(SMALLEST), T.float32(0), T.float32(LARGEST) / largest)
        )
        for i in range(QUAD):
            T.buffer_store(values, values[i] * inverse, [i])  # a statement: no fused addition
            T.buffer_store(values, values[i] + constant(WHOLE), [i])
            T.buffer_store(bits, T.reinterpret(values[i], dtype="int32") - WHOLE_BITS, [i])
        g, place = T.Bind(word // WORDS), T.Bind(word % WORDS)
        low, high = self.factors
        factor = low if low == high else T.Select(place < WORDS // 2, low, high)
        total = bits[0] + bits[1] + bits[2] + bits[3]
        T.buffer_store(self.sums, total * factor, [self.thread])
        barrier()
        with T.If(here), T.Then():
            T.buffer_store(out, _packed(bits), [row, g, place])
            with T.If(place.equal(0)), T.Then():
                values = registers(1)
                T.buffer_store(values, largest / T.float32(LARGEST), [0])
                T.buffer_store(out, T.reinterpret(values[0], dtype="int32"), [row, g, SCALE])
                parts = [self.sums[self.thread + i] for i in range(WORDS)]
                T.buffer_store(out, sum(parts[1:], parts[0]), [row, g, SUM])
        barrier()  # before the shared memory is used again

    def _largest(self, values: Buffer) -> Expr:
        """|x| of a group's largest, compared as bits: the same order as floats, but a NaN is the
        largest instead of vanishing.
        """
        best = registers(1, "int32", 0)
        for i in range(QUAD):
            size = T.bitwise_and(T.reinterpret(values[i], dtype="int32"), 0x7FFFFFFF)
            T.buffer_store(best, T.max(best[0], size), [0])
        T.buffer_store(self.largest, best[0], [self.thread])
        barrier()
        start = T.Bind(self.thread // WORDS * WORDS)
        for i in range(WORDS):
            T.buffer_store(best, T.max(best[0], self.largest[start + i]), [0])
        return T.Bind(T.reinterpret(best[0], dtype="float32"))


def _packed(bits: Buffer) -> Expr:
    """The last byte of each of four numbers."""
    parts = [T.shift_left(T.bitwise_and(bits[i], 255), 8 * i) for i in range(QUAD)]
    return parts[0] | parts[1] | parts[2] | parts[3]
