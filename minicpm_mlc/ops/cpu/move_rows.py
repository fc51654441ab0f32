"""Commit of a token tree's path: its keys and values move to the slots behind the committed ones.

From Relax, with the pools at arguments 3 and 4: as in ops/cpu/rope.py, `inplace_indices=[3, 4]`.
segment_means over the same `slots` then writes the means of the segments that the path finishes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.tree import copy_vectors
from minicpm_mlc.ops.tir import T


def move_rows_definition(
    sources: np.ndarray,
    slots: np.ndarray,
    page_table: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    kv: KVFormat,
) -> None:
    """Copy keys and values of each sources[r] to slots[r], in order of r, in place.

    sources and slots [m], both ascending, sources[r] >= slots[r]; page_table [1, p];
    both pools as the format stores them.
    """
    for source, slot in zip(sources, slots, strict=True):
        to, at = page_table[0, slot // PAGE_SIZE], page_table[0, source // PAGE_SIZE]
        kv.move(k_pages, v_pages, (to, slot % PAGE_SIZE), (at, source % PAGE_SIZE))


def move_rows(num_kv_heads: int, head_dim: int, kv: KVFormat) -> Any:
    """PrimFunc (sources i32[m], slots i32[m], page_table i32[1, p], k_pages, v_pages), both pools
    in place.
    """

    def move(m: Any, sources: Any, slots: Any, page_table: Any, k_pages: Any, v_pages: Any) -> None:
        with (
            T.serial(m) as r,
            T.If(sources[r] != slots[r]),
            T.Then(),
        ):  # in order: a slot is read before it is written
            to, at = (
                T.Bind(T.Cast("int64", page_table[0, x[r] // PAGE_SIZE])) for x in (slots, sources)
            )
            t, s = T.Bind(slots[r] % PAGE_SIZE), T.Bind(sources[r] % PAGE_SIZE)
            with T.serial(num_kv_heads) as head:
                kv.cpu_copy_key(k_pages, k_pages, head_dim, (to, head, t), (at, head, s))
                copy_vectors(v_pages, v_pages, head_dim, (to, head, t), (at, head, s))

    @T.prim_func(private=True)
    def move_rows(
        sources_handle: T.handle,
        slots_handle: T.handle,
        page_table_handle: T.handle,
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
    ):
        T.func_attr(vector.ATTRS)
        m = T.int64()
        p = T.int64()
        num_pages = T.int64()
        sources = T.match_buffer(sources_handle, (m,), "int32")
        slots = T.match_buffer(slots_handle, (m,), "int32")
        page_table = T.match_buffer(page_table_handle, (1, p), "int32")
        pools = kv.match_pools(k_pages_handle, v_pages_handle, num_pages, num_kv_heads, head_dim)
        move(m, sources, slots, page_table, *pools)

    return move_rows
