"""Attention of a token tree's rows, dense and over selected blocks: each row as the decode row of
its own path.

The tasks of one split lie side by side, so that the rows that share its pages find them in the
cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.attend import (
    MAX_SPLITS,
    SPLIT_PAGES,
    Visit,
    attend_in_splits,
    attend_row,
    page_at,
    share_of,
    splits_for,
)
from minicpm_mlc.ops.cpu.attend_blocks import attend_blocks_definition
from minicpm_mlc.ops.cpu.attend_page import Block, Page, Shape
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.tree import (
    MASK_WORDS,
    MAX_NODES,
    Path,
    TailPages,
    path_tables_definition,
    paths_definition,
)
from minicpm_mlc.ops.tir import T


def attend_tree_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_table: np.ndarray,
    base: np.ndarray,
    ancestors: np.ndarray,
) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v over slots < base[0], and base[0] + j for each bit j of a row's
    mask; float64 [n, h * d].

    q [n, heads, d]; pools as in attend_definition; page_table [1, p]; ancestors int32 [n, 2].
    """
    n, heads, head_dim = q.shape
    grouped = q.astype(np.float64).reshape(n, k_pages.shape[1], -1, head_dim) / np.sqrt(head_dim)
    keys = np.concatenate(k_pages[page_table[0]], -1)
    values = np.concatenate(v_pages[page_table[0]], -2)
    out = np.zeros(grouped.shape)
    for row, path in enumerate(paths_definition(ancestors)):
        seen = [*range(base[0]), *(base[0] + node for node in path)]
        scores = grouped[row] @ keys[..., seen].astype(np.float64)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[row] = weights / weights.sum(-1, keepdims=True) @ values[:, seen].astype(np.float64)
    return out.reshape(n, heads * head_dim)


def attend_tree_blocks_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_table: np.ndarray,
    base: np.ndarray,
    ancestors: np.ndarray,
    selected: np.ndarray,
) -> np.ndarray:
    """As attend_blocks_definition over each row's own sequence; arguments as in
    attend_tree_definition.
    """
    tables, pools = path_tables_definition(
        int(base[0]), ancestors, page_table[0], (k_pages, 3), (v_pages, 2)
    )
    slots = base[0] + np.array([len(path) - 1 for path in paths_definition(ancestors)])
    return attend_blocks_definition(q, pools[0], pools[1], tables, slots, selected)


def attend_tree(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv: KVFormat,
    tile_vectors: int = 4,
    bf16_dot: bool = False,
) -> Any:
    """PrimFunc (q f32[n, h, d], k_pages, v_pages, page_table i32[1, p], base i32[m], ancestors
    i32[n, 2]) -> f32[n, h * d].

    As in attend_tree_definition; only base[0] counts, so that the slots of a whole tree serve as
    base. Each row equals attend_decode's row of its path, bit for bit. `tile_vectors`: as in
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

    def attend(
        n: Any, q: Any, pools: tuple[Any, Any], page_table: Any, base: Any, ancestors: Any, out: Any
    ) -> None:
        def attend_split(row: Any, kv_head: Any, split: Any) -> Block:
            path = Path.of(page_table, base, ancestors, row)
            begin, end = share_of(T.Bind(T.Cast("int64", path.slot // PAGE_SIZE + 1)), split)
            return attend_path(shape, kv, q, pools, path, row, kv_head, _each_page(begin, end))

        last = (
            T.Cast("int64", base[0]) + MAX_NODES - 1
        )  # a row may lie deeper than the rows of its call
        attend_in_splits(shape, n, splits_for(last // PAGE_SIZE + 1), attend_split, out)

    @T.prim_func(private=True)
    def attend_tree(
        q_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        page_table_handle: T.handle,
        base_handle: T.handle,
        ancestors_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        m = T.int64()
        p = T.int64()
        num_pages = T.int64()
        q = T.match_buffer(q_handle, (n, num_heads, head_dim), "float32")
        pools = kv.match_pools(k_pages_handle, v_pages_handle, num_pages, num_kv_heads, head_dim)
        page_table = T.match_buffer(page_table_handle, (1, p), "int32")
        base = T.match_buffer(base_handle, (m,), "int32")
        ancestors = T.match_buffer(ancestors_handle, (n, MASK_WORDS), "int32")
        out = T.match_buffer(out_handle, (n, num_heads * head_dim), "float32")
        attend(n, q, pools, page_table, base, ancestors, out)

    return shape.arithmetic.finish(attend_tree)


def attend_tree_blocks(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv: KVFormat,
    budget: int,
    tile_vectors: int = 4,
    bf16_dot: bool = False,
) -> Any:
    """PrimFunc (q f32[n, h, d], k_pages, v_pages, page_table i32[1, p], base i32[m], ancestors
    i32[n, 2], selected i32[n, k, budget]) -> f32[n, h * d].

    As attend_tree over each row's selected blocks. A list ends at its first -1.
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
    splits = min(-(-budget // SPLIT_PAGES), MAX_SPLITS)

    def attend(
        n: Any,
        q: Any,
        pools: tuple[Any, Any],
        page_table: Any,
        base: Any,
        ancestors: Any,
        selected: Any,
        out: Any,
    ) -> None:
        def attend_split(row: Any, kv_head: Any, split: Any) -> Block:
            path = Path.of(page_table, base, ancestors, row)
            begin, end = T.Bind(budget * split // splits), T.Bind(budget * (split + 1) // splits)

            def visit_all(visit: Callable[[Any], None]) -> None:
                with T.serial(end - begin) as step:
                    number = T.Bind(selected[row, kv_head, begin + step])
                    with T.If(number >= 0), T.Then():
                        visit(number)

            return attend_path(shape, kv, q, pools, path, row, kv_head, visit_all)

        attend_in_splits(shape, n, splits, attend_split, out)

    @T.prim_func(private=True)
    def attend_tree_blocks(
        q_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        page_table_handle: T.handle,
        base_handle: T.handle,
        ancestors_handle: T.handle,
        selected_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        m = T.int64()
        p = T.int64()
        num_pages = T.int64()
        q = T.match_buffer(q_handle, (n, num_heads, head_dim), "float32")
        pools = kv.match_pools(k_pages_handle, v_pages_handle, num_pages, num_kv_heads, head_dim)
        page_table = T.match_buffer(page_table_handle, (1, p), "int32")
        base = T.match_buffer(base_handle, (m,), "int32")
        ancestors = T.match_buffer(ancestors_handle, (n, MASK_WORDS), "int32")
        selected = T.match_buffer(selected_handle, (n, num_kv_heads, budget), "int32")
        out = T.match_buffer(out_handle, (n, num_heads * head_dim), "float32")
        attend(n, q, pools, page_table, base, ancestors, selected, out)

    return shape.arithmetic.finish(attend_tree_blocks)


def _each_page(begin: Any, end: Any) -> Callable[[Callable[[Any], None]], None]:
    def visit_all(visit: Callable[[Any], None]) -> None:
        with T.serial(end - begin) as step:
            visit(T.Bind(T.Cast("int32", begin + step)))

    return visit_all


def attend_path(
    shape: Shape,
    kv: KVFormat,
    q: Any,
    pools: tuple[Any, Any],
    path: Path,
    row: Any,
    kv_head: Any,
    each_number: Callable[[Callable[[Any], None]], None],
) -> Block:
    """One row's heads of one KV head over the pages of its own sequence that each_number calls its
    argument with.
    """
    scratch = TailPages.allocate(shape.head_dim, kv)

    def visit_all(visit: Visit) -> None:
        def visit_number(number: Any) -> None:
            with T.If(number < path.tail):
                with T.Then():
                    following = T.min(number + 1, path.tail)
                    places = (page_at(path.page_table, 0, at) for at in (number, following))
                    visit(number, Page(kv, pools, next(places), kv_head, next(places)))
                with T.Else():
                    visit(number, Page(kv, scratch.gather(path, number, kv_head, pools), 0, 0))

        each_number(visit_number)

    return attend_row(shape, q, path.slot, row, kv_head, visit_all)
