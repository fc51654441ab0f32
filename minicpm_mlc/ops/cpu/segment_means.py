"""The one extra state of sparse attention: the mean of each finished segment of 16 keys.

InfLLM-v2's two compressed caches are averages of these: K1[j] = (M[j] + M[j+1]) / 2, K2[j] =
mean(M[4j .. 4j+7]). From Relax, after rope_append and with the means' pool at argument 3:

    k_means = op.tensor_ir_inplace_op(
        segment_means(...), "segment_means", [slots, page_tables, k_pages, k_means],
        inplace_indices=[3], out=Tensor.placeholder(k_means.shape, "float32"))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv import KEYS, KVFormat
from minicpm_mlc.ops.tir import T


def segment_means_definition(
    slots: np.ndarray, page_tables: np.ndarray, k_pages: np.ndarray, k_means: np.ndarray
) -> None:
    """Write the float64 mean of every segment that a row of this call finishes into k_means, in
    place.

    slots [n]; page_tables [n, p], or [1, p] shared by all rows; k_pages [pages, kv_heads, d,
    page_size]; k_means [pages, kv_heads, 4, d].
    """
    page_size = k_pages.shape[-1]
    size = page_size // SEGMENTS
    for row, slot in enumerate(slots):
        page = page_tables[row if len(page_tables) > 1 else 0, slot // page_size]
        segment, offset = divmod(slot % page_size, size)
        if offset == size - 1:
            keys = k_pages[page, :, :, segment * size : (segment + 1) * size]
            k_means[page, :, segment] = keys.astype(np.float64).mean(-1)


def write_mean(
    kv: KVFormat,
    k_means: Any,
    k_pages: Any,
    head_dim: int,
    segment: Any,
    to: tuple[Any, ...],
    at: tuple[Any, Any],
) -> None:
    """k_means[*to, segment, :] = the mean of a segment of the keys k_pages[*at], of int8 keys as
    they are read.
    """
    scales = kv.cpu_scales(k_pages, head_dim, KEYS, *at, segment)
    with T.serial(head_dim) as i:
        keys = kv.cpu_load(k_pages, *at, i, segment * SEGMENT_SIZE)
        total = vector.fold(lambda a, b: a + b, T.Bind(keys if scales is None else keys * scales))
        T.buffer_store(k_means, total * T.float32(1 / SEGMENT_SIZE), [*to, segment, i])


def segment_means(num_kv_heads: int, head_dim: int, kv: KVFormat, batched: bool) -> Any:
    """PrimFunc (slots i32[n], page_tables i32[s, p], k_pages [pages, k, d, 64], k_means f32[pages,
    k, 4, d] in place).

    Rows whose slot ends a segment write its mean; all 16 keys must lie in the pool already. Row r
    uses page table r when `batched` (decode), else the only one (prefill, s == 1). float32 even for
    float16 keys: a mean rounded to float16 moves a selection.
    """

    def write_means(n: Any, slots: Any, page_tables: Any, k_pages: Any, k_means: Any) -> None:
        def row(r: Any) -> None:
            slot = T.Bind(slots[r])
            with T.If(slot % SEGMENT_SIZE == SEGMENT_SIZE - 1), T.Then():
                page = T.Bind(T.Cast("int64", page_tables[r if batched else 0, slot // PAGE_SIZE]))
                segment = T.Bind(T.Cast("int64", slot % PAGE_SIZE // SEGMENT_SIZE))
                with T.serial(num_kv_heads) as head:
                    write_mean(kv, k_means, k_pages, head_dim, segment, (page, head), (page, head))

        vector.spread(n, row, serial_below=64)

    @T.prim_func(private=True)
    def segment_means(
        slots_handle: T.handle,
        page_tables_handle: T.handle,
        k_pages_handle: T.handle,
        k_means_handle: T.handle,
    ):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        s = T.int64()
        p = T.int64()
        num_pages = T.int64()
        slots = T.match_buffer(slots_handle, (n,), "int32")
        page_tables = T.match_buffer(page_tables_handle, (s, p), "int32")
        k_pages = kv.match_keys(k_pages_handle, num_pages, num_kv_heads, head_dim)
        k_means = T.match_buffer(
            k_means_handle, (num_pages, num_kv_heads, SEGMENTS, head_dim), "float32"
        )
        write_means(n, slots, page_tables, k_pages, k_means)

    return segment_means
