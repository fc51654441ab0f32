"""Rotary position embedding, the writes of keys and values into their pages, and of the means of
segments that are finished with them.
"""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.kv import KEYS, VALUES
from minicpm_mlc.ops.gpu.kernel import accumulate, registers, strided, workgroups
from minicpm_mlc.ops.gpu.pools import Pools
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.rope_append import RopeAppend, RopeAppendMeans
from minicpm_mlc.ops.tir import Buffer, Expr, T


def rope_append(
    operator: RopeAppend,
    _: GpuTraits,
    dims: Dims,
    qkv: Buffer,
    cos_sin: Buffer,
    slots: Buffer,
    page_tables: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    q: Buffer,
) -> None:
    """A row's head a workgroup."""
    buffers = qkv, cos_sin, slots, page_tables, k_pages, v_pages, q
    _emit(operator, dims, *buffers)


def rope_append_means(
    operator: RopeAppendMeans,
    _: GpuTraits,
    dims: Dims,
    qkv: Buffer,
    cos_sin: Buffer,
    slots: Buffer,
    page_tables: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    k_means: Buffer,
    q: Buffer,
) -> None:
    """The same; a thread that wrote the last key's component sums the segment's."""
    buffers = qkv, cos_sin, slots, page_tables, k_pages, v_pages, q
    _emit(operator, dims, *buffers, k_means)


def _emit(
    operator: RopeAppend,
    dims: Dims,
    qkv: Buffer,
    cos_sin: Buffer,
    slots: Buffer,
    page_tables: Buffer,
    k_pages: Buffer,
    v_pages: Buffer,
    q: Buffer,
    k_means: Buffer | None = None,
) -> None:
    num_heads, num_kv_heads, head_dim = operator.heads
    half, all_heads = head_dim // 2, num_heads + 2 * num_kv_heads
    pools = Pools(operator.kv, head_dim, k_pages, v_pages)
    with workgroups(dims.n * all_heads) as (group, thread):
        row, head = T.Bind(group // all_heads), T.Bind(group % all_heads)
        table = row if operator.batched else 0
        page = T.Bind(T.Cast("int64", page_tables[table, slots[row] // PAGE_SIZE]))
        offset = T.Bind(slots[row] % PAGE_SIZE)
        kv_head = T.Bind((head - num_heads) % num_kv_heads)
        rotates = T.Bind(head < num_heads + num_kv_heads)

        def pair(i: Expr) -> tuple[Expr, Expr]:
            """Components i and half + i of this head, rotated unless it is a value."""
            first = T.Bind(qkv[row, head * head_dim + i])
            second = T.Bind(qkv[row, head * head_dim + half + i])
            cos, sin = T.Bind(cos_sin[row, i]), T.Bind(cos_sin[row, half + i])
            turned = first * cos - second * sin, second * cos + first * sin
            return T.Bind(T.Select(rotates, turned[0], first)), T.Bind(
                T.Select(rotates, turned[1], second)
            )

        def write(component: Expr, x: Expr) -> None:
            with T.If(head < num_heads):
                with T.Then():
                    T.buffer_store(q, x, [row, head, component])
                with T.Else(), T.If(rotates):
                    with T.Then():
                        pools.put_key(page, kv_head, component, offset, x * factor)
                        if k_means is not None:
                            put_mean(component)
                    with T.Else():
                        pools.put_value(page, kv_head, component, offset, x * factor)

        def put_mean(component: Expr) -> None:
            """As segment_means. No thread reads what another wrote: the last key's scale is still
            in a register.
            """
            with T.If(offset % SEGMENT_SIZE == SEGMENT_SIZE - 1), T.Then():
                total, first = registers(1, value=0.0), T.Bind(offset - (SEGMENT_SIZE - 1))
                with T.serial(SEGMENT_SIZE - 1) as t:
                    key = pools.key(page, kv_head, component, first + t)
                    accumulate(total, 0, pools.scaled_by(key, KEYS, page, kv_head, first + t))
                accumulate(total, 0, pools.key(page, kv_head, component, offset) * last_scale)
                mean = total[0] * T.float32(1 / SEGMENT_SIZE)
                T.buffer_store(k_means, mean, [page, kv_head, offset // SEGMENT_SIZE, component])

        factor = last_scale = T.float32(1)
        if scaling := operator.kv.gpu_scale(pair, half, thread):
            scale, factor = scaling
            last_scale = scale
            with T.If(T.And(thread.equal(0), head >= num_heads)), T.Then():
                pools.put_scale(T.Select(rotates, KEYS, VALUES), page, kv_head, offset, scale)
        with strided(half, thread) as i:
            for component, x in zip((i, half + i), pair(i), strict=True):
                write(component, x)
