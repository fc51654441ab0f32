"""The cosines and sines of rotary position embedding."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.rope_angles import RopeAngles
from minicpm_mlc.ops.tir import Buffer, T


def rope_angles(
    operator: RopeAngles,
    _: GpuTraits,
    dims: Dims,
    positions: Buffer,
    inv_freq: Buffer,
    cos_sin: Buffer,
) -> None:
    """A row is a position, for one workgroup: the cosines of its angles, then the sines."""
    half = operator.head_dim // 2
    scale = operator.attention_scale
    with workgroups(dims.n) as (row, thread), strided(half, thread) as i:
        angle = T.Bind(T.Cast("float32", positions[row]) * inv_freq[i])
        T.buffer_store(cos_sin, T.cos(angle) * constant(scale), [row, i])
        T.buffer_store(cos_sin, T.sin(angle) * constant(scale), [row, half + i])
