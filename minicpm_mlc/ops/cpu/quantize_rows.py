"""Activations rounded to int8 per row and group of 32 columns."""

from __future__ import annotations

from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.quantize_rows import (
    LARGEST,
    SCALE,
    SCALED,
    SMALLEST,
    SUM,
    QuantizeRows,
    factors_of,
)
from minicpm_mlc.ops.tir import Buffer, Expr


def quantize_rows(operator: QuantizeRows, _: CpuTraits, dims: Dims, x: Buffer, out: Buffer) -> None:
    """A row a task. Raises CompileError when its columns aren't a multiple of 32."""
    if operator.columns % GROUP:
        raise CompileError(
            f"a linear layer has {operator.columns} inputs; the CPU kernels need a multiple of "
            f"{GROUP}"
        )

    def row(r: Expr) -> None:
        with T.serial(operator.columns // GROUP) as g:
            halves = [vector.load(x, r, g * GROUP + half) for half in (0, 16)]
            quantize_group(halves, operator.sum_factor, out, r, g)

    vector.spread(dims.m, row, serial_below=8)


def quantize_group(halves: list[Expr], factor: int, out: Buffer, r: Expr, g: Expr) -> None:
    """Emit the ten words of row r, group g, whose 32 values are two vectors."""
    halves = [T.Bind(half) for half in halves]
    bits = [
        T.bitwise_and(T.reinterpret(half, dtype="int32x16"), T.broadcast(0x7FFFFFFF, 16))
        for half in halves
    ]
    # |x| compared as bits: the same order as floats, but a NaN is the largest instead of vanishing
    largest = T.Bind(T.reinterpret(vector.fold(T.max, T.Bind(T.max(*bits))), dtype="float32"))
    scale = T.Bind(largest / T.float32(LARGEST))
    T.buffer_store(out, T.reinterpret(scale, dtype="int32"), [r, g, SCALE])
    held = vector.registers(
        3
    )  # a memory cell ends an expression; TVM's simplifier expands longer ones for seconds
    inverse = T.Select(largest < T.float32(SMALLEST), T.float32(0), T.float32(LARGEST) / largest)
    vector.store(held, vector.splat(inverse), 0)
    for i, half in enumerate(halves):
        vector.store(held, T.nearbyint(half * vector.load(held, 0)), (1 + i) * 16)
        words = T.Cast("int8x16", T.Cast("int32x16", vector.load(held, (1 + i) * 16)))
        T.buffer_store(out, T.reinterpret(words, dtype="int32x4"), [r, g, T.ramp(4 * i, 1, 4)])
    counted = [
        vector.load(held, (1 + i) * 16) * vector.splat(float(times))
        for i, times in enumerate(factors_of(factor))
    ]
    total = vector.fold(lambda a, b: a + b, T.Bind(counted[0] + counted[1]))  # exact: small wholes
    scaled = factor == SCALED
    word = T.reinterpret(total * scale, dtype="int32") if scaled else T.Cast("int32", total)
    T.buffer_store(out, word, [r, g, SUM])
