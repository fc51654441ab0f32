"""Attention over paged keys and values, for prefill and decode.

A prefill task owns 64 rows (token-major: row m is token m // group, head m % group) and walks all
their pages. A decode task owns one sequence, one KV head and a share of the pages; the shares are
merged by log-sum-exp. So does one of a short prefill, which has too few blocks of 64 rows to keep
every core busy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.attend_page import Block, Page, Shape, attend_page
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.paged import LOWEST
from minicpm_mlc.ops.tir import T

BLOCK_ROWS = 64  # rows of a prefill block: their queries and outputs stay in the L2 cache
FEW_TOKENS = 8  # a prefill this short goes by decode's tasks
SPLIT_PAGES = 4  # the least work worth a split of its own in decode
MAX_SPLITS = 16


def attend_definition(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    page_tables: np.ndarray,
    slots: np.ndarray,
) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v over the slots 0..slots[r] of row r's page table, float64 [n,
    heads * d].

    q [n, heads, d]; k_pages [pages, kv_heads, d, 64], v_pages [pages, kv_heads, 64, d];
    page_tables [n, p] (decode), or [1, p] shared by all rows (prefill).
    """
    n, heads, head_dim = q.shape
    grouped = q.astype(np.float64).reshape(n, k_pages.shape[1], -1, head_dim) / np.sqrt(head_dim)
    out = np.zeros(grouped.shape)
    for row, slot in enumerate(slots):
        table = page_tables[row if len(page_tables) > 1 else 0][: slot // PAGE_SIZE + 1]
        keys = np.concatenate(k_pages[table], -1)[..., : slot + 1].astype(np.float64)
        values = np.concatenate(v_pages[table], -2)[:, : slot + 1].astype(np.float64)
        scores = grouped[row] @ keys
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[row] = weights / weights.sum(-1, keepdims=True) @ values
    return out.reshape(n, heads * head_dim)


def paged(shape: Shape, kv: KVFormat, body: Callable[..., None]) -> Any:
    """The PrimFunc (q, k_pages, v_pages, page_tables, slots) -> out that both kinds of attention
    share.
    """
    num_heads, num_kv_heads, head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim

    @T.prim_func(private=True)
    def attend(
        q_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        page_tables_handle: T.handle,
        slots_handle: T.handle,
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
        out = T.match_buffer(out_handle, (n, num_heads * head_dim), "float32")
        body(n, q, pools, page_tables, slots, out)

    return shape.arithmetic.finish(attend)


def attend_prefill(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv: KVFormat,
    tile_vectors: int = 4,
    bf16_dot: bool = False,
) -> Any:
    """PrimFunc (q f32[n, h, d], k_pages, v_pages, page_tables i32[1, p], slots i32[n]) -> f32[n, h
    * d].

    Row r sees the slots up to slots[r]. `tile_vectors` accumulators of 16 lanes must fit the
    registers beside their operands: 8 hide the latency of AVX-512, 4 are what AVX2 and NEON hold.
    """
    shape = Shape.of(num_heads, num_kv_heads, head_dim, kv, BLOCK_ROWS, tile_vectors, bf16_dot)
    group = shape.group

    def attend(
        n: Any, q: Any, pools: tuple[Any, Any], page_tables: Any, slots: Any, out: Any
    ) -> None:
        # A block's tiles then hold heads of several tokens, and a short prefill has blocks enough.
        if group < shape.rows:
            return attend_by_blocks(n, q, pools, page_tables, slots, out)
        with T.If(n <= FEW_TOKENS):
            with T.Then():
                attend_each(shape, kv, n, q, pools, lambda _: (page_tables, 0), slots, out)
            with T.Else():
                attend_by_blocks(n, q, pools, page_tables, slots, out)

    def attend_by_blocks(
        n: Any, q: Any, pools: tuple[Any, Any], page_tables: Any, slots: Any, out: Any
    ) -> None:
        rows = T.Bind(n * group)
        blocks = T.Bind((rows + BLOCK_ROWS - 1) // BLOCK_ROWS)
        with T.parallel(blocks * num_kv_heads) as task:
            kv_head = T.Bind(task % num_kv_heads)
            order = T.Bind(task // num_kv_heads)
            # threads get runs of tasks: cheap early blocks and dear late ones alternate
            start = T.Bind(
                T.Select(order % 2 == 0, order // 2, blocks - 1 - order // 2) * BLOCK_ROWS
            )
            here = T.Bind(T.min(rows - start, BLOCK_ROWS))
            tiles = T.Bind((here + shape.rows - 1) // shape.rows)
            block = Block.allocate(shape, BLOCK_ROWS)
            last = T.alloc_buffer((1,), "int32")
            T.buffer_store(last, 0, [0])
            with T.serial(tiles * shape.rows) as row:
                at = T.Bind(start + T.min(row, here - 1))
                slot = T.Bind(slots[at // group])
                block.load_row(shape, row, q, at // group, kv_head * group + at % group, slot)
                T.buffer_store(last, T.max(last[0], slot), [0])
            final = T.Bind(last[0] // PAGE_SIZE)
            with T.serial(final + 1) as number:
                place, following = (
                    page_at(page_tables, 0, at) for at in (number, T.min(number + 1, final))
                )
                page = Page(kv, pools, place, kv_head, following)
                attend_page(shape, block, tiles, number * PAGE_SIZE, page)
            with T.serial(here) as row:
                at = T.Bind(start + row)
                factor = T.Bind(vector.splat(T.float32(1) / block.sum_of(row)))
                column = (kv_head * group + at % group) * head_dim
                for j in range(0, head_dim, vector.LANES):
                    vector.store(
                        out, vector.load(block.output, row, j) * factor, at // group, column + j
                    )

    return paged(shape, kv, attend)


def page_at(page_tables: Any, table: Any, number: Any) -> Any:
    """The place in the pools of a sequence's page."""
    return T.Bind(T.Cast("int64", page_tables[table, number]))


def merge_splits(shape: Shape, splits: Any, parts: Any, sequence: Any, head: Any, out: Any) -> None:
    """out = the splits' outputs, weighed by exp2 of how far each split's maximum lies below the
    highest.
    """
    vectors, maximum, total = shape.head_dim // vector.LANES, shape.head_dim, shape.head_dim + 1
    scalars = T.alloc_buffer((2,), "float32")  # highest maximum, total sum
    tile = vector.registers(vectors)
    T.buffer_store(scalars, T.float32(LOWEST), [0])
    T.buffer_store(scalars, T.float32(0), [1])
    for j in range(vectors):
        vector.store(tile, vector.splat(0.0), j * vector.LANES)
    with T.serial(splits) as split:
        T.buffer_store(scalars, T.max(scalars[0], parts[split, sequence, head, maximum]), [0])
    with T.serial(splits) as split:
        weight = vector.exp2(vector.splat(parts[split, sequence, head, maximum] - scalars[0]))
        T.buffer_store(
            scalars,
            scalars[1] + T.Shuffle([weight], [0]) * parts[split, sequence, head, total],
            [1],
        )
        for at in range(0, shape.head_dim, vector.LANES):
            part = vector.load(parts, split, sequence, head, at)
            vector.store(tile, vector.load(tile, at) + part * weight, at)
    factor = T.Bind(vector.splat(T.float32(1) / scalars[1]))
    for at in range(0, shape.head_dim, vector.LANES):
        vector.store(out, vector.load(tile, at) * factor, sequence, head * shape.head_dim + at)


Visit = Callable[[Any, Page], None]  # of a block of 64 slots: its number in the sequence, its page


def attend_row(
    shape: Shape, q: Any, slot: Any, row: Any, kv_head: Any, visit_all: Callable[[Visit], None]
) -> Block:
    """One row's heads of one KV head over the blocks that visit_all calls its argument with; sees
    slots <= slot.
    """
    block = Block.allocate(shape, shape.group)
    for m in range(shape.tiles(shape.group) * shape.rows):
        block.load_row(shape, m, q, row, kv_head * shape.group + min(m, shape.group - 1), slot)

    def visit(number: Any, page: Page) -> None:
        start = T.Bind(T.Cast("int32", number * PAGE_SIZE))
        attend_page(shape, block, shape.tiles(shape.group), start, page)

    visit_all(visit)
    return block


def splits_for(pages: Any) -> Any:
    """How many splits a row of that many pages (int64) is cut into."""
    return T.Bind(T.min((pages + SPLIT_PAGES - 1) // SPLIT_PAGES, MAX_SPLITS))


def share_of(pages: Any, split: Any) -> tuple[Any, Any]:
    """(first page, end) of a row's split; by its own length, so that a row's sums don't depend on
    the rows beside it.
    """
    splits = splits_for(pages)
    return T.Bind(T.min(pages * split // splits, pages)), T.Bind(
        T.min(pages * (split + 1) // splits, pages)
    )


def attend_in_splits(
    shape: Shape, n: Any, splits: Any, attend_split: Callable[[Any, Any, Any], Block], out: Any
) -> None:
    """A task per row, KV head and split (attend_split of them), then a merge of each head's splits,
    at most 16.
    """
    num_heads, num_kv_heads, head_dim, group = (
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        shape.group,
    )
    parts = T.alloc_buffer(
        (MAX_SPLITS, n, num_heads, head_dim + vector.LANES), "float32"
    )  # output, maximum, sum
    with T.parallel(splits * n * num_kv_heads) as task:
        kv_head = T.Bind(task % num_kv_heads)
        row = T.Bind(task // num_kv_heads % n)
        split = T.Bind(task // (n * num_kv_heads))
        block = attend_split(row, kv_head, split)
        with T.serial(group) as m:
            head = kv_head * group + m
            T.buffer_store(parts, block.maxima[m], [split, row, head, head_dim])
            T.buffer_store(parts, block.sum_of(m), [split, row, head, head_dim + 1])
            for at in range(0, head_dim, vector.LANES):
                vector.store(parts, vector.load(block.output, m, at), split, row, head, at)

    def merge(task: Any) -> None:
        merge_splits(shape, splits, parts, task // num_heads, task % num_heads, out)

    vector.spread(n * num_heads, merge, serial_below=128)


def attend_each(
    shape: Shape,
    kv: KVFormat,
    n: Any,
    q: Any,
    pools: tuple[Any, Any],
    table_of: Callable[[Any], tuple[Any, Any]],
    slots: Any,
    out: Any,
) -> None:
    """Every row by itself, in splits; table_of(row) are the first arguments of page_at."""
    longest = T.alloc_buffer((1,), "int32")
    T.buffer_store(longest, 0, [0])
    with T.serial(n) as row:
        T.buffer_store(longest, T.max(longest[0], slots[row]), [0])

    def attend_split(row: Any, kv_head: Any, split: Any) -> Block:
        begin, end = share_of(T.Bind(T.Cast("int64", slots[row] // PAGE_SIZE + 1)), split)

        def visit_all(visit: Visit) -> None:
            with T.serial(end - begin) as step:
                number = T.Bind(begin + step)
                place, following = (
                    page_at(*table_of(row), at) for at in (number, T.min(number + 1, end - 1))
                )
                visit(number, Page(kv, pools, place, kv_head, following))

        return attend_row(shape, q, slots[row], row, kv_head, visit_all)

    attend_in_splits(
        shape, n, splits_for(T.Cast("int64", longest[0]) // PAGE_SIZE + 1), attend_split, out
    )


def attend_decode(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv: KVFormat,
    tile_vectors: int = 4,
    bf16_dot: bool = False,
) -> Any:
    """PrimFunc (q f32[b, h, d], k_pages, v_pages, page_tables i32[b, p], slots i32[b]) -> f32[b, h
    * d].

    One row per sequence, which sees the slots up to slots[r] of its own page table. Each sequence
    is cut into up to 16 equal splits of pages, so that one long sequence keeps every core busy.
    `tile_vectors`: as in attend_prefill.
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
        b: Any, q: Any, pools: tuple[Any, Any], page_tables: Any, slots: Any, out: Any
    ) -> None:
        attend_each(shape, kv, b, q, pools, lambda row: (page_tables, row), slots, out)

    return paged(shape, kv, attend)
