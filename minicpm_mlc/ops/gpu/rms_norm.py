"""RMSNorm, in float32."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
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
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.rms_norm import RmsNorm
from minicpm_mlc.ops.tir import Buffer, T


def rms_norm(
    operator: RmsNorm, _: GpuTraits, dims: Dims, x: Buffer, weight: Buffer, out: Buffer
) -> None:
    """A row a workgroup."""
    hidden = operator.hidden
    with workgroups(dims.n) as (row, thread):
        total = registers(1, value=0.0)
        with strided(hidden, thread) as i:
            value = T.Bind(x[row, i])
            accumulate(total, 0, value * value)
        square = reduced(lambda a, b: a + b, shared((THREADS,)), total[0], thread)
        mean = square / constant(hidden)
        factor = T.Bind(constant(1.0) / T.sqrt(mean + constant(operator.eps)))
        with strided(hidden, thread) as i:
            T.buffer_store(out, x[row, i] * factor * weight[i], [row, i])
