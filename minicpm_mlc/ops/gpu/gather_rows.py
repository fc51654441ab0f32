"""Pick rows of a matrix."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gather_rows import GatherRows
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import Buffer, T


def gather_rows(
    operator: GatherRows, _: GpuTraits, dims: Dims, x: Buffer, rows: Buffer, out: Buffer
) -> None:
    """out[r] = x[rows[r]], a row a workgroup."""
    with workgroups(dims.m) as (row, thread):
        source = T.Bind(T.Cast("int64", rows[row]))
        with strided(operator.hidden, thread) as i:
            T.buffer_store(out, x[source, i], [row, i])
