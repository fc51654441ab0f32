"""The cosines and sines of rotary position embedding."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.rope_angles import RopeAngles
from minicpm_mlc.ops.tir import Buffer, Expr, T


def rope_angles(
    operator: RopeAngles,
    _: CpuTraits,
    dims: Dims,
    positions: Buffer,
    inv_freq: Buffer,
    cos_sin: Buffer,
) -> None:
    """A row is a position: the cosines of its angles, then the sines."""
    half = operator.head_dim // 2
    vectors = vector.vectors_in(half, "half of head_dim")
    scale = operator.attention_scale

    def row(r: Expr) -> None:
        position = T.Bind(T.Cast("float32", positions[r]))
        for j in range(vectors):
            angle = T.Bind(vector.splat(position) * vector.load(inv_freq, j * 16))
            sine, cosine = vector.sin_cos(angle)
            vector.store(cos_sin, cosine * vector.splat(scale), r, j * 16)
            vector.store(cos_sin, sine * vector.splat(scale), r, half + j * 16)

    vector.spread(dims.n, row, serial_below=64)
