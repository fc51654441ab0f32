"""Attention over paged keys and values, for prefill and decode.

A prefill task owns 64 rows (token-major: row m is token m // group, head m % group) and walks all
their pages. A decode task owns one sequence, one KV head and a share of the pages; the shares are
merged by log-sum-exp. So does one of a short prefill, which has too few blocks of 64 rows to keep
every core busy.
"""

from __future__ import annotations

from collections.abc import Callable

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.attend_page import Block, Page, Shape, attend_page
from minicpm_mlc.ops.cpu.attend_shape import shape_of
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

BLOCK_ROWS = 64  # rows of a prefill block: their queries and outputs stay in the L2 cache
FEW_TOKENS = 8  # a prefill this short goes by decode's tasks
SPLIT_PAGES = 4  # the least work worth a split of its own in decode
MAX_SPLITS = vector.LANES  # whose weights are one vector


def attend_prefill(
    operator: AttendPrefill,
    traits: CpuTraits,
    dims: Dims,
    q: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    page_tables: Buffer,
    slots: Buffer,
    out: Buffer,
) -> None:
    """A task owns 64 rows; of a short prefill, a row."""
    shape, kv = shape_of(operator, traits, BLOCK_ROWS), operator.kv
    pools = k_pages, v_pages
    with shape.arithmetic.functions():
        # A block's tiles then hold heads of several tokens, and a short prefill has blocks enough.
        if shape.group < shape.rows:
            attend_by_blocks(shape, kv, dims.n, q, pools, page_tables, slots, out)
            return
        with T.If(dims.n <= FEW_TOKENS):
            with T.Then():
                attend_each(shape, kv, dims.n, q, pools, lambda _: (page_tables, 0), slots, out)
            with T.Else():
                attend_by_blocks(shape, kv, dims.n, q, pools, page_tables, slots, out)


def attend_by_blocks(
    shape: Shape,
    kv: KVFormat,
    n: Expr,
    q: Buffer,
    pools: tuple[Buffer, Buffer],
    page_tables: Buffer,
    slots: Buffer,
    out: Buffer,
) -> None:
    """A task owns 64 rows of a key/value head and walks all their pages."""
    group, head_dim, num_kv_heads = shape.group, shape.head_dim, shape.num_kv_heads
    rows = T.Bind(n * group)
    blocks = T.Bind((rows + BLOCK_ROWS - 1) // BLOCK_ROWS)
    with T.parallel(blocks * num_kv_heads) as task:
        kv_head = T.Bind(task % num_kv_heads)
        order = T.Bind(task // num_kv_heads)
        # threads get runs of tasks: cheap early blocks and expensive late ones alternate
        start = T.Bind(T.Select(order % 2 == 0, order // 2, blocks - 1 - order // 2) * BLOCK_ROWS)
        here = T.Bind(T.min(rows - start, BLOCK_ROWS))
        tiles = T.Bind((here + shape.rows - 1) // shape.rows)
        block = Block.allocate(shape, BLOCK_ROWS)
        last = T.alloc_buffer((1,), "int32")
        T.buffer_store(last, 0, [0])
        with T.serial(tiles * shape.rows) as row:
            at = T.Bind(start + T.min(row, here - 1))
            slot = T.Bind(slots[at // group])
            block.load_row(row, q, at // group, kv_head * group + at % group, slot)
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


def page_at(page_tables: Buffer, table: Expr, number: Expr) -> Expr:
    """The place in the pools of a sequence's page."""
    return T.Bind(T.Cast("int64", page_tables[table, number]))


def merge_splits(
    shape: Shape, splits: Expr, parts: Buffer, sequence: Expr, head: Expr, out: Buffer
) -> None:
    """out = the splits' outputs, weighed by exp2 of how far each split's maximum lies below the
    highest.
    """
    maximum, total = shape.head_dim, shape.head_dim + 1
    weights = T.alloc_buffer((MAX_SPLITS,), "float32", scope="global")  # a vector of them
    every = (T.ramp(0, 1, MAX_SPLITS),)
    T.buffer_store(weights, vector.splat(LOWEST), list(every))
    with T.serial(splits) as split:
        T.buffer_store(weights, parts[split, sequence, head, maximum], [split])
    highest = vector.fold(T.max, T.Bind(weights[every]))
    T.buffer_store(weights, vector.exp2(weights[every] - vector.splat(highest)), list(every))
    sum_ = T.alloc_buffer((1,), "float32")
    T.buffer_store(sum_, T.float32(0), [0])
    with T.serial(splits) as split:
        T.buffer_store(sum_, sum_[0] + weights[split] * parts[split, sequence, head, total], [0])
    factor = T.Bind(vector.splat(T.float32(1) / sum_[0]))
    with T.serial(shape.head_dim // vector.LANES) as j:
        held = vector.registers(1)
        vector.store(held, vector.splat(0.0), 0)
        with T.serial(splits) as split:
            part = vector.load(parts, split, sequence, head, j * vector.LANES)
            vector.store(held, vector.load(held, 0) + part * vector.splat(weights[split]), 0)
        column = head * shape.head_dim + j * vector.LANES
        vector.store(out, vector.load(held, 0) * factor, sequence, column)


Visit = Callable[[Expr, Page], None]  # of a block of 64 slots: its number in the sequence, its page


def attend_row(
    shape: Shape,
    q: Buffer,
    slot: Expr,
    row: Expr,
    kv_head: Expr,
    visit_all: Callable[[Visit], None],
) -> Block:
    """One row's heads of one KV head over the blocks that visit_all calls its argument with; sees
    slots <= slot.
    """
    block = Block.allocate(shape, shape.group)
    with T.serial(shape.tiles(shape.group) * shape.rows) as m:
        head = T.Bind(kv_head * shape.group + T.min(m, shape.group - 1))
        block.load_row(m, q, row, head, slot)

    def visit(number: Expr, page: Page) -> None:
        start = T.Bind(T.Cast("int32", number * PAGE_SIZE))
        attend_page(shape, block, shape.tiles(shape.group), start, page)

    visit_all(visit)
    return block


def splits_for(pages: Expr) -> Expr:
    """How many splits a row of that many pages (int64) is cut into."""
    return T.Bind(T.min((pages + SPLIT_PAGES - 1) // SPLIT_PAGES, MAX_SPLITS))


def share_of(pages: Expr, split: Expr) -> tuple[Expr, Expr]:
    """(first page, end) of a row's split; by its own length, so that a row's sums don't depend on
    the rows beside it.
    """
    splits = splits_for(pages)
    begin, end = (T.min(pages * each // splits, pages) for each in (split, split + 1))
    return vector.opaque(begin), vector.opaque(end)


def attend_in_splits(
    shape: Shape,
    n: Expr,
    splits: Expr,
    attend_split: Callable[[Expr, Expr, Expr], Block],
    out: Buffer,
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
        row = vector.opaque(task // num_kv_heads % n)
        split = vector.opaque(task // (n * num_kv_heads))
        block = attend_split(row, kv_head, split)
        with T.serial(group) as m:
            head = kv_head * group + m
            T.buffer_store(parts, block.maxima[m], [split, row, head, head_dim])
            T.buffer_store(parts, block.sum_of(m), [split, row, head, head_dim + 1])
            for at in range(0, head_dim, vector.LANES):
                vector.store(parts, vector.load(block.output, m, at), split, row, head, at)

    def merge(task: Expr) -> None:
        merge_splits(shape, splits, parts, task // num_heads, task % num_heads, out)

    vector.spread(n * num_heads, merge, serial_below=128)


def attend_each(
    shape: Shape,
    kv: KVFormat,
    n: Expr,
    q: Buffer,
    pools: tuple[Buffer, Buffer],
    table_of: Callable[[Expr], tuple[Expr, Expr]],
    slots: Buffer,
    out: Buffer,
) -> None:
    """Every row by itself, in splits; table_of(row) are the first arguments of page_at."""
    longest = T.alloc_buffer((1,), "int32")
    T.buffer_store(longest, 0, [0])
    with T.serial(n) as row:
        T.buffer_store(longest, T.max(longest[0], slots[row]), [0])

    def attend_split(row: Expr, kv_head: Expr, split: Expr) -> Block:
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
    operator: AttendDecode,
    traits: CpuTraits,
    dims: Dims,
    q: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    page_tables: Buffer,
    slots: Buffer,
    out: Buffer,
) -> None:
    """Each sequence is cut into up to 16 equal splits of pages, so that one long sequence keeps
    every core busy.
    """
    shape, pools = shape_of(operator, traits, operator.group), (k_pages, v_pages)
    with shape.arithmetic.functions():
        attend_each(
            shape, operator.kv, dims.n, q, pools, lambda row: (page_tables, row), slots, out
        )
