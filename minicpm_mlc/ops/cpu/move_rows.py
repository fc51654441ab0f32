"""Commit of a token tree's path: its keys and values move behind the committed ones."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.move_rows import MoveRows
from minicpm_mlc.ops.tir import Buffer, T


def move_rows(
    operator: MoveRows,
    _: CpuTraits,
    dims: Dims,
    sources: Buffer,
    slots: Buffer,
    page_table: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
) -> None:
    """One task: a slot is read before it is written."""
    head_dim = operator.head_dim
    with T.serial(dims.m) as r, T.If(sources[r] != slots[r]), T.Then():
        to, at = (
            T.Bind(T.Cast("int64", page_table[0, x[r] // PAGE_SIZE])) for x in (slots, sources)
        )
        t, s = T.Bind(slots[r] % PAGE_SIZE), T.Bind(sources[r] % PAGE_SIZE)
        with T.serial(operator.num_kv_heads) as head:
            operator.kv.cpu_copy_key(k_pages, k_pages, head_dim, (to, head, t), (at, head, s))
            operator.kv.cpu_copy_value(v_pages, v_pages, head_dim, (to, head, t), (at, head, s))
