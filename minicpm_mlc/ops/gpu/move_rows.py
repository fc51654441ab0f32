"""Commit of a token tree's path: its keys and values move behind the committed ones."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.pools import Pools
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.move_rows import MoveRows
from minicpm_mlc.ops.tir import Buffer, T


def move_rows(
    operator: MoveRows,
    _: GpuTraits,
    dims: Dims,
    sources: Buffer,
    slots: Buffer,
    page_table: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
) -> None:
    """A thread moves one component of all rows, in order: a slot is read before it is written."""
    pools = Pools(operator.kv, operator.head_dim, k_pages, v_pages)
    with (
        workgroups(operator.num_kv_heads) as (head, thread),
        strided(operator.head_dim, thread) as i,
        T.serial(dims.m) as r,
    ):
        pages = [
            T.Bind(T.Cast("int64", page_table[0, x[r] // PAGE_SIZE])) for x in (slots, sources)
        ]
        to, at = (T.Bind(x[r] % PAGE_SIZE) for x in (slots, sources))
        pools.copy(i, head, (pages[0], to), (pages[1], at))
