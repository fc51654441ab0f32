"""Attention of a token tree's rows, dense and over selected blocks: each row as the decode row of
its own path.

The tasks of one split lie side by side, so that the rows that share its pages find them in the
cache.
"""

from __future__ import annotations

from collections.abc import Callable

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.attend_tree import AttendTree, AttendTreeBlocks
from minicpm_mlc.ops.build import Dims
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
from minicpm_mlc.ops.cpu.attend_page import Block, Page, Shape
from minicpm_mlc.ops.cpu.attend_shape import shape_of
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.tree import MAX_NODES, TailPages, TreePath
from minicpm_mlc.ops.tir import Buffer, Expr, T


def attend_tree(
    operator: AttendTree,
    traits: CpuTraits,
    dims: Dims,
    q: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    page_table: Buffer,
    base: Buffer,
    ancestors: Buffer,
    out: Buffer,
) -> None:
    """As decode, over each row's path."""
    kv, n, pools = operator.kv, dims.n, (k_pages, v_pages)
    shape = shape_of(operator, traits, operator.group)

    with shape.arithmetic.functions():

        def attend_split(row: Expr, kv_head: Expr, split: Expr) -> Block:
            path = TreePath.of(page_table, base, ancestors, row)
            begin, end = share_of(T.Bind(T.Cast("int64", path.slot // PAGE_SIZE + 1)), split)
            return attend_path(shape, kv, q, pools, path, row, kv_head, _each_page(begin, end))

        last = (
            T.Cast("int64", base[0]) + MAX_NODES - 1
        )  # a row may lie deeper than the rows of its call
        attend_in_splits(shape, n, splits_for(last // PAGE_SIZE + 1), attend_split, out)


def attend_tree_blocks(
    operator: AttendTreeBlocks,
    traits: CpuTraits,
    dims: Dims,
    q: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    page_table: Buffer,
    base: Buffer,
    ancestors: Buffer,
    selected: Buffer,
    out: Buffer,
) -> None:
    """As attend_tree, over the splits of each row's list."""
    kv, budget, n, pools = operator.kv, operator.budget, dims.n, (k_pages, v_pages)
    shape = shape_of(operator, traits, operator.group)
    splits = min(-(-budget // SPLIT_PAGES), MAX_SPLITS)

    with shape.arithmetic.functions():

        def attend_split(row: Expr, kv_head: Expr, split: Expr) -> Block:
            path = TreePath.of(page_table, base, ancestors, row)
            begin, end = T.Bind(budget * split // splits), T.Bind(budget * (split + 1) // splits)

            def visit_all(visit: Callable[[Expr], None]) -> None:
                with T.serial(end - begin) as step:
                    number = T.Bind(selected[row, kv_head, begin + step])
                    with T.If(number >= 0), T.Then():
                        visit(number)

            return attend_path(shape, kv, q, pools, path, row, kv_head, visit_all)

        attend_in_splits(shape, n, splits, attend_split, out)


def _each_page(begin: Expr, end: Expr) -> Callable[[Callable[[Expr], None]], None]:
    def visit_all(visit: Callable[[Expr], None]) -> None:
        with T.serial(end - begin) as step:
            visit(T.Bind(T.Cast("int32", begin + step)))

    return visit_all


def attend_path(
    shape: Shape,
    kv: KVFormat,
    q: Buffer,
    pools: tuple[Buffer, Buffer],
    path: TreePath,
    row: Expr,
    kv_head: Expr,
    each_number: Callable[[Callable[[Expr], None]], None],
) -> Block:
    """One row's heads of one KV head over the pages of its own sequence that each_number calls its
    argument with.
    """
    scratch = TailPages.allocate(shape.head_dim, kv)

    def visit_all(visit: Visit) -> None:
        def visit_number(number: Expr) -> None:
            with T.If(number < path.tail):
                with T.Then():
                    following = T.min(number + 1, path.tail)
                    places = (page_at(path.page_table, 0, at) for at in (number, following))
                    visit(number, Page(kv, pools, next(places), kv_head, next(places)))
                with T.Else():
                    visit(number, Page(kv, scratch.gather(path, number, kv_head, pools), 0, 0))

        each_number(visit_number)

    return attend_row(shape, q, path.slot, row, kv_head, visit_all)
