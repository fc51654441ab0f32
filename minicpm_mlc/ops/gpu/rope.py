"""Rotary position embedding, and the writes of keys, values and segment means into their pages."""

from __future__ import annotations

from typing import Any

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.formats.kv import KEYS, VALUES, KVFormat
from minicpm_mlc.ops.gpu.kernel import accumulate, kernel, registers, strided, workgroups
from minicpm_mlc.ops.gpu.pools import Pools, pool_arguments
from minicpm_mlc.ops.tir import T


def rope_append(
    num_heads: int, num_kv_heads: int, head_dim: int, kv: KVFormat, batched: bool
) -> Any:
    """PrimFunc (qkv f32[n, (h + 2k) d], cos_sin f32[n, d], slots i32[n], page_tables i32[s, p],
    k_pages [pages, k, d, 64], v_pages [pages, k, 64, d]) -> q f32[n, h, d]; both pools in place.

    Row r uses page table r when `batched` (decode), else the only one (prefill, s == 1).
    """
    half, all_heads = head_dim // 2, num_heads + 2 * num_kv_heads

    def emit(
        dims: Any,
        qkv: Any,
        cos_sin: Any,
        slots: Any,
        page_tables: Any,
        k_pages: Any,
        v_pages: Any,
        q: Any,
    ) -> None:
        pools = Pools(kv, head_dim, k_pages, v_pages)
        with workgroups(dims.n * all_heads) as (group, thread):
            row, head = T.Bind(group // all_heads), T.Bind(group % all_heads)
            page = T.Bind(
                T.Cast("int64", page_tables[row if batched else 0, slots[row] // PAGE_SIZE])
            )
            offset = T.Bind(slots[row] % PAGE_SIZE)
            kv_head, rotates = (
                T.Bind((head - num_heads) % num_kv_heads),
                T.Bind(head < num_heads + num_kv_heads),
            )

            def pair(i: Any) -> tuple[Any, Any]:
                """Components i and half + i of this head, rotated unless it is a value."""
                first, second = (
                    T.Bind(qkv[row, head * head_dim + i]),
                    T.Bind(qkv[row, head * head_dim + half + i]),
                )
                cos, sin = T.Bind(cos_sin[row, i]), T.Bind(cos_sin[row, half + i])
                turned = first * cos - second * sin, second * cos + first * sin
                return T.Bind(T.Select(rotates, turned[0], first)), T.Bind(
                    T.Select(rotates, turned[1], second)
                )

            def write(component: Any, x: Any) -> None:
                with T.If(head < num_heads):
                    with T.Then():
                        T.buffer_store(q, x, [row, head, component])
                    with T.Else(), T.If(rotates):
                        with T.Then():
                            pools.put_key(page, kv_head, component, offset, x * factor)
                        with T.Else():
                            pools.put_value(page, kv_head, component, offset, x * factor)

            factor = T.float32(1)
            if scaling := kv.gpu_scale(pair, half, thread):
                scale, factor = scaling
                with T.If(T.And(thread.equal(0), head >= num_heads)), T.Then():
                    pools.put_scale(T.Select(rotates, KEYS, VALUES), page, kv_head, offset, scale)
            with strided(half, thread) as i:
                for component, x in zip((i, half + i), pair(i), strict=True):
                    write(component, x)

    arguments = {
        "qkv": ("float32", "n", all_heads * head_dim),
        "cos_sin": ("float32", "n", head_dim),
        "slots": ("int32", "n"),
        "page_tables": ("int32", "s", "p"),
        **pool_arguments(num_kv_heads, head_dim, kv),
        "q": ("float32", "n", num_heads, head_dim),
    }
    return kernel("rope_append", arguments, emit)


def segment_means(num_kv_heads: int, head_dim: int, kv: KVFormat, batched: bool) -> Any:
    """PrimFunc (slots i32[n], page_tables i32[s, p], k_pages [pages, k, d, 64], k_means f32[pages,
    k, 4, d] in place).

    Rows whose slot ends a segment write its mean. Page tables as in rope_append.
    """

    def emit(dims: Any, slots: Any, page_tables: Any, k_pages: Any, k_means: Any) -> None:
        pools = Pools(kv, head_dim, k_pages)
        with workgroups(dims.n * num_kv_heads) as (group, thread):
            row, head = T.Bind(group // num_kv_heads), T.Bind(group % num_kv_heads)
            slot = T.Bind(slots[row])
            with (
                T.If(slot % SEGMENT_SIZE == SEGMENT_SIZE - 1),
                T.Then(),
                strided(head_dim, thread) as i,
            ):
                page = T.Bind(
                    T.Cast("int64", page_tables[row if batched else 0, slot // PAGE_SIZE])
                )
                segment = T.Bind(slot % PAGE_SIZE // SEGMENT_SIZE)
                total = registers(1, value=0.0)
                with T.serial(SEGMENT_SIZE) as t:
                    offset = T.Bind(segment * SEGMENT_SIZE + t)
                    accumulate(
                        total,
                        0,
                        pools.scaled_by(pools.key(page, head, i, offset), KEYS, page, head, offset),
                    )
                T.buffer_store(
                    k_means, total[0] * T.float32(1 / SEGMENT_SIZE), [page, head, segment, i]
                )

    arguments = {
        "slots": ("int32", "n"),
        "page_tables": ("int32", "s", "p"),
        "k_pages": pool_arguments(num_kv_heads, head_dim, kv)["k_pages"],
        "k_means": ("float32", "num_pages", num_kv_heads, SEGMENTS, head_dim),
    }
    return kernel("segment_means", arguments, emit)


def move_rows(num_kv_heads: int, head_dim: int, kv: KVFormat) -> Any:
    """PrimFunc (sources i32[m], slots i32[m], page_table i32[1, p], k_pages, v_pages), both pools
    in place.

    A thread moves one component of all rows, in order: a slot is read before it is written.
    """

    def emit(_: Any, sources: Any, slots: Any, page_table: Any, k_pages: Any, v_pages: Any) -> None:
        pools = Pools(kv, head_dim, k_pages, v_pages)
        with (
            workgroups(num_kv_heads) as (head, thread),
            strided(head_dim, thread) as i,
            T.serial(sources.shape[0]) as r,
        ):
            pages = [
                T.Bind(T.Cast("int64", page_table[0, x[r] // PAGE_SIZE])) for x in (slots, sources)
            ]
            to, at = (T.Bind(x[r] % PAGE_SIZE) for x in (slots, sources))
            pools.copy(i, head, (pages[0], to), (pages[1], at))

    arguments = {
        "sources": ("int32", "m"),
        "slots": ("int32", "m"),
        "page_table": ("int32", 1, "p"),
        **pool_arguments(num_kv_heads, head_dim, kv),
    }
    return kernel("move_rows", arguments, emit)
