"""RMSNorm of each query head and each key head, in float32."""

from __future__ import annotations

from functools import reduce
from operator import add

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.head_norm import HeadNorm
from minicpm_mlc.ops.tir import Buffer, Expr, T


def head_norm(
    operator: HeadNorm, _: CpuTraits, dims: Dims, q_weight: Buffer, k_weight: Buffer, qkv: Buffer
) -> None:
    """A row a task."""
    vector.vectors_in(operator.head_dim, "head_dim")

    def row(r: Expr) -> None:
        with T.serial(operator.num_heads) as head:
            _norm(operator, qkv, q_weight, r, head)
        with T.serial(operator.num_kv_heads) as head:
            _norm(operator, qkv, k_weight, r, operator.num_heads + head)

    vector.spread(dims.n, row, serial_below=8)


def _norm(operator: HeadNorm, qkv: Buffer, weight: Buffer, r: Expr, head: Expr) -> None:
    """Norms one head of row r, which stays in registers between reading and writing."""
    first = head * operator.head_dim
    offsets = range(0, operator.head_dim, vector.LANES)
    values = [T.Bind(vector.load(qkv, r, first + offset)) for offset in offsets]
    squares = T.Bind(reduce(add, [value * value for value in values]))
    mean_square = vector.fold(add, squares) / T.float32(operator.head_dim)
    root = T.Bind(T.sqrt(mean_square + T.float32(operator.eps)))
    factor = T.Bind(vector.splat(T.Bind(T.float32(1) / root)))
    for offset, value in zip(offsets, values, strict=True):
        vector.store(qkv, value * factor * vector.load(weight, offset), r, first + offset)
