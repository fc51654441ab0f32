"""Lightning attention over one matrix a head."""

from __future__ import annotations

from functools import reduce
from math import sqrt
from operator import add

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.kernel import (
    THREADS,
    accumulate,
    barrier,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.lightning_attend import LightningAttend
from minicpm_mlc.ops.tir import Buffer, Expr, T

COLUMNS = 16  # of a state, that one workgroup keeps
PARTS = THREADS // COLUMNS  # threads that share a column, each with some of its rows


def lightning_attend(
    operator: LightningAttend,
    _: GpuTraits,
    dims: Dims,
    qkv: Buffer,
    cos_sin: Buffer,
    positions: Buffer,
    decay: Buffer,
    state: Buffer,
    out: Buffer,
) -> None:
    """A workgroup takes some columns of a head's state through all rows, in registers."""
    heads, size = operator.num_heads, operator.head_dim
    half, blocks, own = size // 2, size // COLUMNS, size // PARTS
    sequences = dims.n if operator.batched else 1
    rows = 1 if operator.batched else dims.n
    with workgroups(sequences * heads * blocks) as (group, thread):
        sequence = T.Bind(group // (heads * blocks))
        head = T.Bind(group // blocks % heads)
        first = T.Bind(group % blocks * COLUMNS)
        column = T.Bind(first + thread % COLUMNS)
        top = T.Bind(thread // COLUMNS * own)
        held, total = registers(own), registers(1)
        query, key = shared((size,)), shared((size,))
        sums = shared((THREADS,))
        for i in range(own):
            T.buffer_store(held, state[sequence, head, top + i, column], [i])

        def turn(row: Expr, part: int, turned: Buffer, factor: float) -> None:
            at = (part * heads + head) * size
            with strided(half, thread) as i:
                left, right = T.Bind(qkv[row, at + i]), T.Bind(qkv[row, at + half + i])
                cos, sin = T.Bind(cos_sin[row, i]), T.Bind(cos_sin[row, half + i])
                T.buffer_store(turned, (left * cos - right * sin) * T.float32(factor), [i])
                T.buffer_store(turned, (right * cos + left * sin) * T.float32(factor), [half + i])

        def step(row: Expr) -> None:
            """Adds a row to the columns, and each thread's part of its output to `sums`."""
            fresh = T.Bind(positions[row] == 0)
            value = T.Bind(qkv[row, (2 * heads + head) * size + column])
            T.buffer_store(total, T.float32(0), [0])
            for i in range(own):
                kept = T.Select(fresh, T.float32(0), held[i] * decay[head])
                T.buffer_store(held, kept + key[top + i] * value, [i])
                accumulate(total, 0, query[top + i] * held[i])
            T.buffer_store(sums, total[0], [thread])

        with T.serial(rows) as r:
            row = T.Bind(sequence + T.Cast("int32", r))
            turn(row, 0, query, 1 / sqrt(size))
            turn(row, 1, key, 1.0)
            barrier()
            step(row)
            barrier()
            with T.If(thread < COLUMNS), T.Then():
                found = reduce(add, [sums[part * COLUMNS + thread] for part in range(PARTS)])
                T.buffer_store(out, found, [row, head * size + column])
        for i in range(own):
            T.buffer_store(state, held[i], [sequence, head, top + i, column])
