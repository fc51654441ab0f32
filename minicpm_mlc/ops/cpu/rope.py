"""Rotary position embedding, and the write of the new keys and values into their pages.

The pools are updated in place. From Relax, with pools at arguments 4 and 5 and a fresh output for
q:

    k_pages, v_pages, q = op.tensor_ir_inplace_op(
        rope_append(...), "rope_append", [qkv, cos_sin, slots, page_tables, k_pages, v_pages],
        inplace_indices=[4, 5, -1],
        out=[Tensor.placeholder(k_pages.shape, k_pages.dtype), Tensor.placeholder(v_pages.shape,
        v_pages.dtype),
             Tensor.placeholder([n, heads, head_dim], "float32")])

Use the returned pools from then on, and return them, or the call is removed as dead code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv import KEYS, VALUES, KVFormat
from minicpm_mlc.ops.tir import T


def rotate_definition(x: np.ndarray, cos_sin: np.ndarray) -> np.ndarray:
    """x [n, heads, d] rotated by cos_sin [n, d] in pairs (i, i + d/2), float64."""
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = np.split(cos_sin.astype(np.float64)[:, None, :], 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def rope_append_definition(
    qkv: np.ndarray,
    cos_sin: np.ndarray,
    slots: np.ndarray,
    page_tables: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    num_heads: int,
    kv: KVFormat,
) -> np.ndarray:
    """Returns rotated q, float64 [n, heads, d]; writes k and v of each row into the pools in place.

    qkv [n, (heads + 2 kv_heads) d]; page_tables [n, p], or [1, p] shared by all rows;
    k_pages [pages, kv_heads, d, 64] (transposed in the page), v_pages [pages, kv_heads, 64, d].
    """
    kv_heads, head_dim = v_pages.shape[1], v_pages.shape[3]
    q, k, v = np.split(
        qkv.reshape(len(qkv), -1, head_dim), [num_heads, num_heads + kv_heads], axis=1
    )
    k = rotate_definition(k, cos_sin)
    for row, slot in enumerate(slots):
        page = page_tables[row if len(page_tables) > 1 else 0, slot // PAGE_SIZE]
        kv.write(k_pages, v_pages, page, slot % PAGE_SIZE, k[row], v[row])
    return rotate_definition(q, cos_sin)


def rope_append(
    num_heads: int, num_kv_heads: int, head_dim: int, kv: KVFormat, batched: bool
) -> Any:
    """PrimFunc (qkv f32[n, (h + 2k) d], cos_sin f32[n, d], slots i32[n], page_tables i32[s, p],
    k_pages [pages, k, d, 64], v_pages [pages, k, 64, d]) -> q f32[n, h, d]; both pools in place.

    Row r uses page table r when `batched` (decode), else the only one (prefill, s == 1).
    """
    half = head_dim // 2
    vectors = vector.vectors_in(half, "half of head_dim")

    def rotate(qkv: Any, cos_sin: Any, r: Any, column: Any, j: int) -> tuple[Any, Any]:
        first = T.Bind(vector.load(qkv, r, column + j * 16))
        second = T.Bind(vector.load(qkv, r, column + half + j * 16))
        cos, sin = (
            T.Bind(vector.load(cos_sin, r, j * 16)),
            T.Bind(vector.load(cos_sin, r, half + j * 16)),
        )
        return T.Bind(first * cos - second * sin), T.Bind(second * cos + first * sin)

    def append(
        n: Any, qkv: Any, cos_sin: Any, slots: Any, page_tables: Any, pools: Any, q: Any
    ) -> None:
        k_pages, v_pages = pools

        def row(r: Any) -> None:
            table = r if batched else 0
            page = T.Bind(T.Cast("int64", page_tables[table, slots[r] // PAGE_SIZE]))
            offset = T.Bind(T.Cast("int64", slots[r] % PAGE_SIZE))
            key = T.alloc_buffer((head_dim,), kv.storage)
            with T.serial(num_heads) as head:
                for j in range(vectors):
                    first, second = rotate(qkv, cos_sin, r, head * head_dim, j)
                    vector.store(q, first, r, head, j * 16)
                    vector.store(q, second, r, head, half + j * 16)
            with T.serial(num_kv_heads) as head:
                column = (num_heads + num_kv_heads + head) * head_dim
                pairs = [
                    rotate(qkv, cos_sin, r, (num_heads + head) * head_dim, j)
                    for j in range(vectors)
                ]
                keys = [first for first, _ in pairs] + [second for _, second in pairs]
                values = [T.Bind(vector.load(qkv, r, column + j * 16)) for j in range(2 * vectors)]
                keys = kv.cpu_stored(keys, k_pages, KEYS, (page, head, offset))
                values = kv.cpu_stored(values, k_pages, VALUES, (page, head, offset))
                for j, value in enumerate(values):
                    T.buffer_store(v_pages, value, [page, head, offset, T.ramp(j * 16, 1, 16)])
                for j, vector_of_key in enumerate(keys):
                    T.buffer_store(key, vector_of_key, [T.ramp(j * 16, 1, 16)])
                with T.serial(head_dim) as i:  # a token is a column of its key page
                    T.buffer_store(k_pages, key[i], [page, head, i, offset])

        vector.spread(n, row, serial_below=8)

    @T.prim_func(private=True)
    def rope_append(
        qkv_handle: T.handle,
        cos_sin_handle: T.handle,
        slots_handle: T.handle,
        page_tables_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        q_handle: T.handle,
    ):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        s = T.int64()
        p = T.int64()
        num_pages = T.int64()
        qkv = T.match_buffer(qkv_handle, (n, (num_heads + 2 * num_kv_heads) * head_dim), "float32")
        cos_sin = T.match_buffer(cos_sin_handle, (n, head_dim), "float32")
        slots = T.match_buffer(slots_handle, (n,), "int32")
        page_tables = T.match_buffer(page_tables_handle, (s, p), "int32")
        pools = kv.match_pools(k_pages_handle, v_pages_handle, num_pages, num_kv_heads, head_dim)
        q = T.match_buffer(q_handle, (n, num_heads, head_dim), "float32")
        append(n, qkv, cos_sin, slots, page_tables, pools, q)

    return rope_append
