"""Rotary position embedding, and the write of the new keys and values into their pages."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.kv import KEYS, VALUES
from minicpm_mlc.ops.rope_append import RopeAppend
from minicpm_mlc.ops.tir import Buffer, Expr, T


def rope_append(
    operator: RopeAppend,
    _: CpuTraits,
    dims: Dims,
    qkv: Buffer,
    cos_sin: Buffer,
    slots: Buffer,
    page_tables: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    q: Buffer,
) -> None:
    """A row a task."""
    num_heads, num_kv_heads, head_dim = operator.heads
    half, kv = head_dim // 2, operator.kv
    vectors = vector.vectors_in(half, "half of head_dim")

    def rotate(r: Expr, column: Expr, j: int) -> tuple[Expr, Expr]:
        first = T.Bind(vector.load(qkv, r, column + j * 16))
        second = T.Bind(vector.load(qkv, r, column + half + j * 16))
        cos = T.Bind(vector.load(cos_sin, r, j * 16))
        sin = T.Bind(vector.load(cos_sin, r, half + j * 16))
        return T.Bind(first * cos - second * sin), T.Bind(second * cos + first * sin)

    def write(r: Expr, head: Expr, page: Expr, offset: Expr, key: Buffer) -> None:
        column = (num_heads + num_kv_heads + head) * head_dim
        pairs = [rotate(r, (num_heads + head) * head_dim, j) for j in range(vectors)]
        keys = [first for first, _ in pairs] + [second for _, second in pairs]
        values = [T.Bind(vector.load(qkv, r, column + j * 16)) for j in range(2 * vectors)]
        keys = kv.cpu_stored(keys, k_pages, KEYS, (page, head, offset))
        values = kv.cpu_stored(values, k_pages, VALUES, (page, head, offset))
        kv.cpu_store_value(v_pages, values, (page, head, offset))
        for j, vector_of_key in enumerate(keys):
            T.buffer_store(key, vector_of_key, [T.ramp(j * 16, 1, 16)])
        kv.cpu_store_key(k_pages, key, (page, head, offset))

    def row(r: Expr) -> None:
        table = r if operator.batched else 0
        page = T.Bind(T.Cast("int64", page_tables[table, slots[r] // PAGE_SIZE]))
        offset = T.Bind(T.Cast("int64", slots[r] % PAGE_SIZE))
        key = T.alloc_buffer((head_dim,), kv.storage)
        with T.serial(num_heads) as head:
            for j in range(vectors):
                first, second = rotate(r, head * head_dim, j)
                vector.store(q, first, r, head, j * 16)
                vector.store(q, second, r, head, half + j * 16)
        with T.serial(num_kv_heads) as head:
            write(r, head, page, offset, key)

    vector.spread(dims.n, row, serial_below=8)
