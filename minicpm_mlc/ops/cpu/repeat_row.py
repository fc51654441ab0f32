"""One row under every row of another matrix."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.repeat_row import RepeatRow
from minicpm_mlc.ops.tir import Buffer, T


def repeat_row(operator: RepeatRow, _: CpuTraits, dims: Dims, row: Buffer, out: Buffer) -> None:
    """out[r] = row."""
    vectors = vector.vectors_in(operator.width, "hidden_size")
    with T.serial(dims.n) as r, T.serial(vectors) as j:
        vector.store(out, vector.load(row, j * 16), r, j * 16)
