"""RMSNorm, in float32."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.weights.packing import QUAD
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import (
    THREADS,
    accumulate,
    reduced,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.quantize_rows import Quantiser
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.rms_norm import RmsNorm, RmsNormInt8
from minicpm_mlc.ops.tir import Buffer, Expr, T

WIDE = 256  # threads where a row is one workgroup's: the most that every GPU takes


def rms_norm(
    operator: RmsNorm, _: GpuTraits, dims: Dims, x: Buffer, weight: Buffer, out: Buffer
) -> None:
    """A row a workgroup."""
    with workgroups(dims.n) as (row, thread):
        factor = _factor(operator, x, row, thread, THREADS)
        with strided(operator.hidden, thread) as i:
            T.buffer_store(out, x[row, i] * factor * weight[i], [row, i])


def rms_norm_int8(
    operator: RmsNormInt8, _: GpuTraits, dims: Dims, x: Buffer, weight: Buffer, out: Buffer
) -> None:
    """A row a workgroup, whose threads keep their columns in registers."""
    hidden, parts = operator.hidden, -(-operator.hidden // (WIDE * QUAD))
    with workgroups(dims.n, WIDE) as (row, thread):
        held, square = registers(parts * QUAD, value=0.0), registers(1, value=0.0)
        for i in range(parts * QUAD):
            column = T.Bind((i // QUAD * WIDE + thread) * QUAD + i % QUAD)
            with T.If(column < hidden), T.Then():
                T.buffer_store(held, x[row, column], [i])
            accumulate(square, 0, held[i] * held[i])
        factor = _inverse(operator, square[0], thread, WIDE)
        words = Quantiser(hidden, operator.sum_factor, thread, WIDE)
        for part in range(parts):

            def read(column: Expr, i: int, part: int = part) -> Expr:
                return held[part * QUAD + i] * factor * weight[column]

            words.write(out, row, T.int32(part * WIDE), read)


def _factor(operator: RmsNorm, x: Buffer, row: Expr, thread: Expr, threads: int) -> Expr:
    """1 / rms of a row, for every thread."""
    total = registers(1, value=0.0)
    with strided(operator.hidden, thread, threads) as i:
        value = T.Bind(x[row, i])
        accumulate(total, 0, value * value)
    return _inverse(operator, total[0], thread, threads)


def _inverse(operator: RmsNorm, own: Expr, thread: Expr, threads: int) -> Expr:
    """The same, of each thread's sum of squares."""
    square = reduced(lambda a, b: a + b, shared((threads,)), own, thread)
    mean = square / constant(operator.hidden)
    return T.Bind(constant(1.0) / T.sqrt(mean + constant(operator.eps)))
