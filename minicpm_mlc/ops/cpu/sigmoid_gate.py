"""A gate of attention's outputs."""

from __future__ import annotations

from math import gcd

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.sigmoid_gate import SigmoidGate
from minicpm_mlc.ops.tir import Buffer, Expr, T

MOST_VECTORS = 64  # of one task


def sigmoid_gate(
    operator: SigmoidGate, _: CpuTraits, dims: Dims, x: Buffer, gate: Buffer, out: Buffer
) -> None:
    """A task takes up to 1,024 columns of a row."""
    vectors = vector.vectors_in(operator.width, "num_attention_heads * head_dim")
    block = gcd(vectors, MOST_VECTORS)
    blocks = vectors // block

    def columns(task: Expr) -> None:
        row, first = task // blocks, task % blocks * (block * vector.LANES)
        with T.serial(block) as j:
            column = first + j * vector.LANES
            closed = vector.exp(-vector.load(gate, row, column)) + vector.splat(1.0)
            vector.store(out, vector.load(x, row, column) / closed, row, column)

    vector.spread(dims.n * blocks, columns, serial_below=32)
