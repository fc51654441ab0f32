"""Attention of each query over its selected blocks: the second stage of sparse attention.

A row's 16 heads of one KV head share the list, so they are one block of `attend_page`. Decode cuts
the list into splits, as dense decode does with the whole sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.attend import (
    MAX_SPLITS,
    SPLIT_PAGES,
    Visit,
    attend_in_splits,
    attend_row,
    page_at,
)
from minicpm_mlc.ops.cpu.attend_page import Block, Page, Shape
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.tir import T


def attend_blocks_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_tables: np.ndarray,
    slots: np.ndarray,
    selected: np.ndarray,
) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v over the slots <= slots[r] of row r's selected blocks, float64 [n,
    heads * d].

    Shapes as in attend_definition; selected i32[n, kv_heads, budget], -1 past a list's end. A block
    is a page.
    """
    n, heads, head_dim = q.shape
    kv_heads, page_size = k_pages.shape[1], k_pages.shape[-1]
    grouped = q.astype(np.float64).reshape(n, kv_heads, -1, head_dim) / np.sqrt(head_dim)
    out = np.zeros(grouped.shape)
    for row, slot in enumerate(slots):
        table = page_tables[row if len(page_tables) > 1 else 0]
        for head in range(kv_heads):
            blocks = selected[row, head][selected[row, head] >= 0]
            seen = (blocks[:, None] * page_size + np.arange(page_size)).ravel() <= slot
            keys = (
                k_pages[table[blocks], head]
                .swapaxes(1, 2)
                .reshape(-1, head_dim)[seen]
                .astype(np.float64)
            )
            values = v_pages[table[blocks], head].reshape(-1, head_dim)[seen].astype(np.float64)
            scores = grouped[row, head] @ keys.T
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[row, head] = weights / weights.sum(-1, keepdims=True) @ values
    return out.reshape(n, heads * head_dim)


def attend_blocks(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv: KVFormat,
    budget: int,
    batched: bool,
    tile_vectors: int = 4,
    bf16_dot: bool = False,
) -> Any:
    """PrimFunc (q f32[n, h, d], k_pages, v_pages, page_tables i32[s, p], slots i32[n], selected
    i32[n, k, budget])
    -> f32[n, h * d].

    Row r sees the slots up to slots[r] of its blocks, in its own page table when `batched`
    (decode), else in the only one (prefill). A list ends at its first -1. `tile_vectors`: as in
    attend_prefill.
    """
    shape = Shape.of(
        num_heads,
        num_kv_heads,
        head_dim,
        kv,
        num_heads // num_kv_heads,
        tile_vectors,
        bf16_dot,
    )
    group = shape.group

    def attend(
        n: Any,
        q: Any,
        pools: tuple[Any, Any],
        page_tables: Any,
        slots: Any,
        selected: Any,
        out: Any,
    ) -> None:
        def attend_share(row: Any, kv_head: Any, begin: int, share: int) -> Block:
            """The blocks at places begin .. begin + share - 1 of the list."""
            table = row if batched else 0

            def visit_all(visit: Visit) -> None:
                with T.serial(share) as step:
                    number = T.Bind(selected[row, kv_head, begin + step])
                    with T.If(number >= 0), T.Then():
                        following = T.max(
                            selected[row, kv_head, T.min(begin + step + 1, budget - 1)], 0
                        )
                        places = (page_at(page_tables, table, at) for at in (number, following))
                        visit(number, Page(kv, pools, next(places), kv_head, next(places)))

            return attend_row(shape, q, slots[row], row, kv_head, visit_all)

        def attend_split(row: Any, kv_head: Any, split: Any) -> Block:
            begin = T.Bind(budget * split // splits)
            return attend_share(row, kv_head, begin, T.Bind(budget * (split + 1) // splits - begin))

        if batched:
            splits = min(-(-budget // SPLIT_PAGES), MAX_SPLITS)
            attend_in_splits(shape, n, splits, attend_split, out)
            return
        with T.parallel(n * num_kv_heads) as task:
            row, kv_head = T.Bind(task // num_kv_heads), T.Bind(task % num_kv_heads)
            block = attend_share(row, kv_head, 0, budget)
            with T.serial(group) as m:
                factor = T.Bind(vector.splat(T.float32(1) / block.sum_of(m)))
                for at in range(0, head_dim, vector.LANES):
                    column = (kv_head * group + m) * head_dim + at
                    vector.store(out, vector.load(block.output, m, at) * factor, row, column)

    @T.prim_func(private=True)
    def attend_blocks(
        q_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        page_tables_handle: T.handle,
        slots_handle: T.handle,
        selected_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        s = T.int64()
        p = T.int64()
        num_pages = T.int64()
        q = T.match_buffer(q_handle, (n, num_heads, head_dim), "float32")
        pools = kv.match_pools(k_pages_handle, v_pages_handle, num_pages, num_kv_heads, head_dim)
        page_tables = T.match_buffer(page_tables_handle, (s, p), "int32")
        slots = T.match_buffer(slots_handle, (n,), "int32")
        selected = T.match_buffer(selected_handle, (n, num_kv_heads, budget), "int32")
        out = T.match_buffer(out_handle, (n, num_heads * head_dim), "float32")
        attend(n, q, pools, page_tables, slots, selected, out)

    return shape.arithmetic.finish(attend_blocks)
