"""Attention of each query over its selected blocks: the second stage of sparse attention.

A row's 16 heads of one KV head share the list, so they are one block of `attend_page`. Decode cuts
the list into splits, as dense decode does with the whole sequence.
"""

from __future__ import annotations

from minicpm_mlc.ops.attend_blocks import AttendBlocks
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.attend import (
    MAX_SPLITS,
    SPLIT_PAGES,
    Visit,
    attend_in_splits,
    attend_row,
    page_at,
)
from minicpm_mlc.ops.cpu.attend_page import Block, Page
from minicpm_mlc.ops.cpu.attend_shape import shape_of
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.tir import Buffer, Expr, T


def attend_blocks(
    operator: AttendBlocks,
    traits: CpuTraits,
    dims: Dims,
    q: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    page_tables: Buffer,
    slots: Buffer,
    selected: Buffer,
    out: Buffer,
) -> None:
    """Decode cuts a row's list into splits, prefill takes a row and key/value head a task."""
    kv, budget, batched, n = operator.kv, operator.budget, operator.batched, dims.n
    shape, pools = shape_of(operator, traits, operator.group), (k_pages, v_pages)
    num_kv_heads, head_dim, group = operator.num_kv_heads, operator.head_dim, operator.group

    with shape.arithmetic.functions():

        def attend_share(row: Expr, kv_head: Expr, begin: Expr, share: Expr) -> Block:
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

        def attend_split(row: Expr, kv_head: Expr, split: Expr) -> Block:
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
