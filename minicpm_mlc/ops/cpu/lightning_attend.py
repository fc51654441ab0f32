"""Lightning attention over one matrix a head."""

from __future__ import annotations

from math import sqrt

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.lightning_attend import LightningAttend
from minicpm_mlc.ops.tir import Buffer, Expr, T

COLUMNS = 32  # of a state, that one task keeps: 16 KiB for heads of 128


def lightning_attend(
    operator: LightningAttend,
    _: CpuTraits,
    dims: Dims,
    qkv: Buffer,
    cos_sin: Buffer,
    positions: Buffer,
    decay: Buffer,
    state: Buffer,
    out: Buffer,
) -> None:
    """A task takes some columns of a head's state through all rows: they depend on no others."""
    heads, size = operator.num_heads, operator.head_dim
    blocks = size // COLUMNS
    offsets = range(0, COLUMNS, vector.LANES)
    sequences = dims.n if operator.batched else 1
    rows = 1 if operator.batched else dims.n

    def step(row: Expr, sequence: Expr, head: Expr, first: Expr, turned: Buffer) -> None:
        """Adds a row to the state's columns, and reads them for its output."""
        for part, factor in enumerate((1 / sqrt(size), 1.0)):
            _turn(qkv, cos_sin, row, (part * heads + head) * size, turned, part * size, factor)
        kept = T.Bind(vector.splat(decay[head]))
        column = (2 * heads + head) * size + first
        values = [T.Bind(vector.load(qkv, row, column + offset)) for offset in offsets]
        sums = vector.registers(len(offsets))
        for offset in offsets:
            vector.store(sums, vector.splat(0.0), offset)
        with T.serial(size) as i:
            query, key = (T.Bind(vector.splat(turned[part * size + i])) for part in (0, 1))
            for offset, value in zip(offsets, values, strict=True):
                place = sequence, head, i, first + offset
                new = T.Bind(vector.load(state, *place) * kept + key * value)
                vector.store(state, new, *place)
                vector.store(sums, vector.load(sums, offset) + query * new, offset)
        for offset in offsets:
            vector.store(out, vector.load(sums, offset), row, head * size + first + offset)

    def task(number: Expr) -> None:
        sequence = T.Bind(number // (heads * blocks))
        head = T.Bind(number // blocks % heads)
        first = T.Bind(number % blocks * COLUMNS)
        turned = T.alloc_buffer((2 * size,), "float32")
        with T.serial(rows) as r:
            row = sequence + r
            with T.If(positions[row] == 0), T.Then(), T.serial(size) as i:
                for offset in offsets:
                    vector.store(state, vector.splat(0.0), sequence, head, i, first + offset)
            step(row, sequence, head, first, turned)

    vector.spread(sequences * heads * blocks, task, serial_below=8)


def _turn(
    qkv: Buffer, cos_sin: Buffer, row: Expr, column: Expr, turned: Buffer, at: int, factor: float
) -> None:
    """Stores a row's query or key from `column` on, times `factor` and rotated, into `turned`."""
    half = int(cos_sin.shape[1]) // 2
    for j in range(0, vector.vectors_in(half, "half of head_dim") * vector.LANES, vector.LANES):
        first = T.Bind(vector.load(qkv, row, column + j) * vector.splat(factor))
        second = T.Bind(vector.load(qkv, row, column + half + j) * vector.splat(factor))
        cos = T.Bind(vector.load(cos_sin, row, j))
        sin = T.Bind(vector.load(cos_sin, row, half + j))
        vector.store(turned, first * cos - second * sin, at + j)
        vector.store(turned, second * cos + first * sin, at + half + j)
