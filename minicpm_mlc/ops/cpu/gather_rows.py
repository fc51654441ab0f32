"""Pick rows of a matrix."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.gather_rows import GatherRows
from minicpm_mlc.ops.tir import Buffer, Expr, T


def gather_rows(
    operator: GatherRows, _: CpuTraits, dims: Dims, x: Buffer, rows: Buffer, out: Buffer
) -> None:
    """out[r] = x[rows[r]], a row a task."""
    vectors = vector.vectors_in(operator.hidden, "hidden_size")

    def row(r: Expr) -> None:
        source = T.Bind(T.Cast("int64", rows[r]))
        with T.serial(vectors) as j:
            vector.store(out, vector.load(x, source, j * 16), r, j * 16)

    vector.spread(dims.m, row, serial_below=32)
