"""Rows side by side."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.concat import Concat
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import Buffer, T


def concat(operator: Concat, _: GpuTraits, dims: Dims, *buffers: Buffer) -> None:
    """The parts' columns from left to right, a row a workgroup."""
    *sources, out = buffers
    with workgroups(dims.n) as (row, thread), strided(operator.width, thread) as i:
        for part, source in enumerate(sources):
            T.buffer_store(out, source[row, i], [row, part * operator.width + i])
