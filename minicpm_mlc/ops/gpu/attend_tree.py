"""Attention of a token tree's rows, dense and over selected blocks, in splits."""

from __future__ import annotations

from functools import partial

from minicpm_mlc.ops.attend import Attention
from minicpm_mlc.ops.attend_tree import AttendTree, AttendTreeBlocks
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.attend import (
    AttentionCall,
    VisitAll,
    all_pages,
    launch,
    made_call,
    selected_pages,
)
from minicpm_mlc.ops.gpu.sequence import PathSequence
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import Buffer, Expr, T


def attend_tree(operator: AttendTree, traits: GpuTraits, dims: Dims, *buffers: Buffer) -> None:
    """Over the whole path."""
    launch(_call(operator, traits, dims, buffers, all_pages), dims.p)


def attend_tree_blocks(
    operator: AttendTreeBlocks, traits: GpuTraits, dims: Dims, *buffers: Buffer
) -> None:
    """Over the list."""
    *shared, selected, out = buffers
    visit = partial(selected_pages, selected)
    launch(_call(operator, traits, dims, (*shared, out), visit), T.int64(operator.budget))


def _call(
    operator: Attention,
    traits: GpuTraits,
    dims: Dims,
    buffers: tuple[Buffer, ...],
    visit: VisitAll,
) -> AttentionCall:
    """The launch over a tree's rows, by AttendTree's buffers."""
    *given, page_table, base, ancestors, out = buffers

    def sequence(row: Expr, thread: Expr) -> PathSequence:
        return PathSequence(page_table, base, ancestors, row, thread)

    return made_call(operator, traits, dims.n, (*given, out), sequence, visit)
