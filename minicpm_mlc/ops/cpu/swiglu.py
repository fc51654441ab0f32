"""SwiGLU's activation."""

from __future__ import annotations

from math import gcd

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.swiglu import Swiglu
from minicpm_mlc.ops.tir import Buffer, Expr, T

MOST_VECTORS = 64  # of one task


def swiglu(operator: Swiglu, _: CpuTraits, dims: Dims, gate_up: Buffer, out: Buffer) -> None:
    """A task takes up to 1,024 columns of a row."""
    vectors = vector.vectors_in(operator.intermediate, "intermediate_size")
    block = gcd(vectors, MOST_VECTORS)
    blocks = vectors // block

    def columns(task: Expr) -> None:
        row, first = task // blocks, task % blocks * (block * 16)
        with T.serial(block) as j:
            column = first + j * 16
            vector.store(out, activated(gate_up, row, column, operator.intermediate), row, column)

    vector.spread(dims.n * blocks, columns, serial_below=32)


def activated(gate_up: Buffer, row: Expr, column: Expr, intermediate: int) -> Expr:
    """silu(gate) * up of 16 columns."""
    gate = T.Bind(vector.load(gate_up, row, column))
    up = vector.load(gate_up, row, column + intermediate)
    return T.Bind(gate / (vector.exp(-gate) + vector.splat(1.0)) * up)
