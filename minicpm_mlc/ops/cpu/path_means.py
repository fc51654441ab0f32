"""Segment means of a token tree's paths: what sequential decoding would have written by the time it
reached a node.

A node at position p sees the windows that end at p or before, some of which end inside the tree.
Their means exist nowhere, since the pool holds committed segments only, so each row gets its own
copies of its path's last pages' means.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.segment_means import SEGMENT_SIZE, SEGMENTS, write_mean
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.tree import (
    MASK_WORDS,
    TAIL_PAGES,
    Path,
    gather_keys,
    path_tables_definition,
)
from minicpm_mlc.ops.tir import T


def path_means_definition(
    k_pages: np.ndarray,
    k_means: np.ndarray,
    page_table: np.ndarray,
    base: np.ndarray,
    ancestors: np.ndarray,
) -> np.ndarray:
    """float64 [n, 2, kv_heads, 4, d]: each row's means of pages base // 64 and the next; 0 where it
    has none.

    k_pages [pages, kv_heads, d, 64]; k_means [pages, kv_heads, 4, d] with the committed segments'
    means, which are copied; page_table [1, p]; base [m], whose first element is the tree's;
    ancestors int32 [n, 2].
    """
    tables, (pages,) = path_tables_definition(int(base[0]), ancestors, page_table[0], (k_pages, 3))
    first = base[0] // PAGE_SIZE
    keys = pages[tables[:, first : first + TAIL_PAGES]].astype(np.float64)
    means = keys.reshape(*keys.shape[:-1], SEGMENTS, SEGMENT_SIZE).mean(-1).swapaxes(-1, -2)
    committed = base[0] % PAGE_SIZE // SEGMENT_SIZE
    if committed:
        means[:, 0, :, :committed] = k_means[page_table[0, first], :, :committed]
    for row, bits in enumerate(ancestors.view(np.uint32)):
        tokens = base[0] % PAGE_SIZE + sum(int(word).bit_count() for word in bits)
        finished = np.arange(TAIL_PAGES * SEGMENTS) < tokens // SEGMENT_SIZE
        means[row] *= finished.reshape(TAIL_PAGES, 1, SEGMENTS, 1)
    return means


def path_means(num_kv_heads: int, head_dim: int, kv: KVFormat) -> Any:
    """PrimFunc (k_pages [pages, k, d, 64], k_means f32[pages, k, 4, d], page_table i32[1, p], base
    i32[m], ancestors i32[n, 2]) -> f32[n, 2, k, 4, d], as in path_means_definition.
    """

    def write(
        row: Any,
        kv_head: Any,
        k_pages: Any,
        k_means: Any,
        page_table: Any,
        base: Any,
        ancestors: Any,
        out: Any,
    ):
        path = Path.of(page_table, base, ancestors, row)
        keys = T.alloc_buffer((1, *kv.key_shape(1, head_dim)), kv.storage)
        with T.serial(TAIL_PAGES) as tail:
            number = T.Bind(path.tail + tail)
            finished = T.Bind(
                T.max(T.min((path.slot + 1 - number * PAGE_SIZE) // SEGMENT_SIZE, SEGMENTS), 0)
            )
            with T.If(finished > 0), T.Then():
                gather_keys(kv, keys, head_dim, path, number, kv_head, k_pages)
            with T.serial(SEGMENTS) as segment, T.If(segment < finished):
                with T.Then(), T.If(number * PAGE_SIZE + (segment + 1) * SEGMENT_SIZE <= path.base):
                    with T.Then():
                        page = T.Bind(T.Cast("int64", page_table[0, number]))
                        with T.serial(head_dim) as i:
                            T.buffer_store(
                                out,
                                k_means[page, kv_head, segment, i],
                                [row, tail, kv_head, segment, i],
                            )
                    with T.Else():
                        write_mean(kv, out, keys, head_dim, segment, (row, tail, kv_head), (0, 0))
                with T.Else(), T.serial(head_dim) as i:
                    T.buffer_store(out, T.float32(0), [row, tail, kv_head, segment, i])

    @T.prim_func(private=True)
    def path_means(
        k_pages_handle: T.handle,
        k_means_handle: T.handle,
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
        k_pages = kv.match_keys(k_pages_handle, num_pages, num_kv_heads, head_dim)
        k_means = T.match_buffer(
            k_means_handle, (num_pages, num_kv_heads, SEGMENTS, head_dim), "float32"
        )
        page_table = T.match_buffer(page_table_handle, (1, p), "int32")
        base = T.match_buffer(base_handle, (m,), "int32")
        ancestors = T.match_buffer(ancestors_handle, (n, MASK_WORDS), "int32")
        out = T.match_buffer(
            out_handle, (n, TAIL_PAGES, num_kv_heads, SEGMENTS, head_dim), "float32"
        )
        with T.parallel(n * num_kv_heads) as task:
            row, kv_head = T.Bind(task // num_kv_heads), T.Bind(task % num_kv_heads)
            write(row, kv_head, k_pages, k_means, page_table, base, ancestors, out)

    return path_means
