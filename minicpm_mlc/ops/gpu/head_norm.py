"""RMSNorm of each query head and each key head, in float32."""

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
from minicpm_mlc.ops.head_norm import HeadNorm
from minicpm_mlc.ops.tir import Buffer, T


def head_norm(
    operator: HeadNorm, _: GpuTraits, dims: Dims, q_weight: Buffer, k_weight: Buffer, qkv: Buffer
) -> None:
    """A head a workgroup; a thread writes the numbers that it read."""
    with workgroups(dims.n * operator.normed_heads) as (group, thread):
        row = T.Bind(group // operator.normed_heads)
        head = T.Bind(group % operator.normed_heads)
        first = T.Bind(head * operator.head_dim)
        total = registers(1, value=0.0)
        with strided(operator.head_dim, thread) as i:
            value = T.Bind(qkv[row, first + i])
            accumulate(total, 0, value * value)
        square = reduced(lambda a, b: a + b, shared((THREADS,)), total[0], thread)
        mean = square / constant(operator.head_dim)
        factor = T.Bind(constant(1.0) / T.sqrt(mean + constant(operator.eps)))
        with strided(operator.head_dim, thread) as i:
            weight = T.Select(head < operator.num_heads, q_weight[i], k_weight[i])
            T.buffer_store(qkv, qkv[row, first + i] * factor * weight, [row, first + i])
