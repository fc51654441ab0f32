"""Rotary position embedding, the writes of keys and values into their pages, and of the means of
segments that are finished with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.kv import KEYS, VALUES
from minicpm_mlc.ops.formats.weights.packing import QUAD
from minicpm_mlc.ops.gpu.kernel import (
    THREADS,
    accumulate,
    registers,
    store_run,
    strided,
    workgroups,
)
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
    """One launch."""
    pools = Pools(operator.kv, operator.head_dim, k_pages, v_pages)
    _Append(operator, dims.n, qkv, cos_sin, slots, page_tables, pools, q).emit()


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
    """The same; a thread that wrote the last key's components sums the segment's."""
    pools = Pools(operator.kv, operator.head_dim, k_pages, v_pages)
    _Append(operator, dims.n, qkv, cos_sin, slots, page_tables, pools, q, k_means).emit()


@dataclass(frozen=True)
class _Append:
    """One call. Without scales in the cache a thread takes neighbouring pairs of components, and a
    workgroup is any of a row's threads; with scales it is a head, whose largest number it finds.
    """

    operator: RopeAppend
    n: Expr
    qkv: Buffer
    cos_sin: Buffer
    slots: Buffer
    page_tables: Buffer
    pools: Pools
    q: Buffer
    k_means: Buffer | None = None

    @property
    def half(self) -> int:
        """Pairs of a head."""
        return self.operator.head_dim // 2

    @property
    def all_heads(self) -> int:
        """Of queries, keys and values."""
        return self.operator.num_heads + 2 * self.operator.num_kv_heads

    def emit(self) -> None:
        """One launch."""
        if self.pools.scales is not None:
            self._by_heads()
        else:
            self._by_threads(QUAD if self.half % QUAD == 0 else 1)

    def _by_threads(self, wide: int) -> None:
        across = self.half // wide  # threads of a head
        parts = -(-self.all_heads * across // THREADS)
        with workgroups(self.n * parts) as (group, thread):
            row, own = T.Bind(group // parts), T.Bind(group % parts * THREADS + thread)
            head, first = T.Bind(own // across), T.Bind(own % across * wide)
            with T.If(head < self.all_heads), T.Then():
                _Head(self, row, head).write(first, wide, T.float32(1), T.float32(1))

    def _by_heads(self) -> None:
        with workgroups(self.n * self.all_heads) as (group, thread):
            number = T.Bind(group % self.all_heads)
            head = _Head(self, T.Bind(group // self.all_heads), number)

            def pair(i: Expr) -> tuple[Expr, ...]:
                return tuple(T.Bind(run[0]) for run in head.turned(i, 1))

            scaling = self.operator.kv.gpu_scale(pair, self.half, thread)
            assert scaling is not None, "a cache with scales"
            scale, factor = scaling
            with T.If(T.And(thread.equal(0), number >= self.operator.num_heads)), T.Then():
                which = T.Select(head.rotates, KEYS, VALUES)
                self.pools.put_scale(which, head.page, head.kv_head, head.offset, scale)
            with strided(self.half, thread) as i:
                head.write(i, 1, scale, factor)


class _Head:
    """One head of a row: of queries, keys or values."""

    def __init__(self, call: _Append, row: Expr, head: Expr) -> None:
        operator, slots, self.call = call.operator, call.slots, call
        self.row, self.head = row, head
        page = call.page_tables[row if operator.batched else 0, slots[row] // PAGE_SIZE]
        self.page = T.Bind(T.Cast("int64", page))
        self.offset = T.Bind(slots[row] % PAGE_SIZE)
        self.kv_head = T.Bind((head - operator.num_heads) % operator.num_kv_heads)
        self.rotates = T.Bind(head < operator.num_heads + operator.num_kv_heads)

    def turned(self, i: Expr, wide: int) -> tuple[Buffer, Buffer]:
        """Components i .. and half + i .. of this head, rotated unless it is a value's."""
        call, half = self.call, self.call.half
        start = T.Bind(self.head * (2 * half) + i)
        first, second = (_run(call.qkv, self.row, start + more, wide) for more in (0, half))
        cosines, sines = (_run(call.cos_sin, self.row, i + more, wide) for more in (0, half))
        for c in range(wide):
            one, other = T.Bind(first[c]), T.Bind(second[c])
            cos, sin = T.Bind(cosines[c]), T.Bind(sines[c])
            turned = T.Bind(one * cos - other * sin), T.Bind(other * cos + one * sin)
            T.buffer_store(first, T.Select(self.rotates, turned[0], one), [c])
            T.buffer_store(second, T.Select(self.rotates, turned[1], other), [c])
        return first, second

    def write(self, i: Expr, wide: int, scale: Expr, factor: Expr) -> None:
        """Pairs i .. i + wide - 1; `scale`: of the cache's numbers, `factor` its inverse."""
        call, runs = self.call, self.turned(i, wide)
        places = [T.Bind(i), T.Bind(call.half + i)]
        with T.If(self.head < call.operator.num_heads):
            with T.Then():
                for place, run in zip(places, runs, strict=True):
                    store_run(call.q, run, [self.row, self.head], place)
            with T.Else(), T.If(self.rotates):
                with T.Then():
                    self._each(call.pools.put_key, places, runs, factor)
                    if call.k_means is not None:
                        self._put_means(call.k_means, places, wide, scale)
                with T.Else():
                    self._each(call.pools.put_value, places, runs, factor)

    def _each(
        self,
        put: Callable[..., None],
        places: list[Expr],
        runs: tuple[Buffer, Buffer],
        factor: Expr,
    ) -> None:
        for place, run in zip(places, runs, strict=True):
            for c in range(int(run.shape[0])):
                put(self.page, self.kv_head, T.Bind(place + c), self.offset, run[c] * factor)

    def _put_means(self, means: Buffer, places: list[Expr], wide: int, last_scale: Expr) -> None:
        """As segment_means. No thread reads what another wrote: the last key's scale is still in a
        register.
        """
        pools, here = self.call.pools, (self.page, self.kv_head)
        with T.If(self.offset % SEGMENT_SIZE == SEGMENT_SIZE - 1), T.Then():
            components = [T.Bind(place + c) for place in places for c in range(wide)]
            total, first = registers(len(components), value=0.0), self.offset - (SEGMENT_SIZE - 1)
            with T.serial(SEGMENT_SIZE - 1) as t:
                offset = T.Bind(first + t)
                for c, component in enumerate(components):
                    key = pools.key(*here, component, offset)
                    accumulate(total, c, pools.scaled_by(key, KEYS, *here, offset))
            for c, component in enumerate(components):
                accumulate(total, c, pools.key(*here, component, self.offset) * last_scale)
                mean = total[c] * T.float32(1 / SEGMENT_SIZE)
                place = [self.page, self.kv_head, self.offset // SEGMENT_SIZE, component]
                T.buffer_store(means, mean, place)


def _run(source: Buffer, row: Expr, start: Expr, wide: int) -> Buffer:
    """source[row, start .. start + wide - 1] in registers, by one load."""
    run, at = registers(wide), T.Bind(start)
    if wide == 1:
        T.buffer_store(run, source[row, at], [0])
    else:
        T.buffer_store(run, source[row, T.ramp(at, 1, wide)], [T.ramp(0, 1, wide)])
    return run
