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
    """A row a workgroup."""
    hidden, step = operator.hidden, WIDE * QUAD
    with workgroups(dims.n, WIDE) as (row, thread):
        factor = _factor(operator, x, row, thread, WIDE)
        words = Quantiser(hidden, operator.sum_factor, thread, WIDE)
        with T.serial(-(-hidden // step)) as part:
            words.write(out, row, part * WIDE, lambda i: x[row, i] * factor * weight[i])


def _factor(operator: RmsNorm, x: Buffer, row: Expr, thread: Expr, threads: int) -> Expr:
    """1 / rms of a row, for every thread."""
    total = registers(1, value=0.0)
    with strided(operator.hidden, thread, threads) as i:
        value = T.Bind(x[row, i])
        accumulate(total, 0, value * value)
    square = reduced(lambda a, b: a + b, shared((threads,)), total[0], thread)
    mean = square / constant(operator.hidden)
    return T.Bind(constant(1.0) / T.sqrt(mean + constant(operator.eps)))
