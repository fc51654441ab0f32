"""Rows side by side."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.concat import Concat
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.tir import Buffer, Expr, T


def concat(operator: Concat, _: CpuTraits, dims: Dims, *buffers: Buffer) -> None:
    """The parts' columns from left to right, a row a task."""
    vectors = vector.vectors_in(operator.width, "hidden_size")
    *sources, out = buffers

    def row(r: Expr) -> None:
        for i, source in enumerate(sources):
            with T.serial(vectors) as j:
                vector.store(out, vector.load(source, r, j * 16), r, i * operator.width + j * 16)

    vector.spread(dims.n, row, serial_below=32)
