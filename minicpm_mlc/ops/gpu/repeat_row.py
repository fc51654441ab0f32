"""One row under every row of another matrix."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.repeat_row import RepeatRow
from minicpm_mlc.ops.tir import Buffer, T


def repeat_row(operator: RepeatRow, _: GpuTraits, dims: Dims, row: Buffer, out: Buffer) -> None:
    """out[r] = row, a row a workgroup."""
    with workgroups(dims.n) as (r, thread), strided(operator.width, thread) as i:
        T.buffer_store(out, row[i], [r, i])
