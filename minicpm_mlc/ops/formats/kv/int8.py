"""int8 with a float32 scale per token and head.

A key page has 8 rows of 64 bytes behind its keys: 4 with the scales of its 64 tokens' keys, then 4
with those of their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv.base import KEYS, ROW_SCALES, SCALE_ROWS, VALUES, KVFormat, Place
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import THREADS, reduced, registers, shared, strided
from minicpm_mlc.ops.tir import Buffer, Expr, T

LARGEST = 127.0
SMALLEST = 1e-30  # a largest component below this counts as this, so that its inverse is finite


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [..., d] -> int8 of the same shape, and float32 scales [...]: the largest component becomes
    127.
    """
    scales = (np.maximum(np.abs(x).max(-1), SMALLEST) / LARGEST).astype(np.float32)
    return np.rint(x / scales[..., None]).astype(np.int8), scales


@dataclass(frozen=True, repr=False)
class Int8(KVFormat):
    """A vector's components are counted in 127ths of its largest."""

    name: str = "int8"
    dtype: str = "int8"
    storage: str = "int8"
    scale_rows: ClassVar[int] = 2 * SCALE_ROWS

    def beside(self, levels: int | None) -> KVFormat:
        from minicpm_mlc.ops.formats.kv.int8_words import Int8Words

        return self if levels is None else Int8Words(levels=levels)

    def write(
        self,
        k_pages: np.ndarray,
        v_pages: np.ndarray,
        page: int | slice,
        slot: int,
        k: np.ndarray,
        v: np.ndarray,
    ) -> None:
        (keys, k_scales), (values, v_scales) = quantize(k), quantize(v)
        super().write(k_pages, v_pages, page, slot, keys, values)
        for which, scales in ((KEYS, k_scales), (VALUES, v_scales)):
            place = page, slice(None), *_scale_place(k.shape[-1], which, slot)
            k_pages[place] = scales[..., None].view(np.int8)

    def read(self, k_pages: np.ndarray, v_pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        head_dim = v_pages.shape[-1]
        rows = np.ascontiguousarray(k_pages[:, :, head_dim:]).view(np.float32).astype(np.float64)
        scales = rows.reshape(*rows.shape[:2], 2, PAGE_SIZE)
        keys, values = (self._rows(pool) for pool in (k_pages[:, :, :head_dim], v_pages))
        return keys * scales[:, :, :1], values * scales[:, :, 1, :, None]

    def _rows(self, pool: np.ndarray) -> np.ndarray:
        """The integers of pages, without their scales, by row and column."""
        return pool

    def move(
        self, k_pages: np.ndarray, v_pages: np.ndarray, to: tuple[int, int], at: tuple[int, int]
    ) -> None:
        super().move(k_pages, v_pages, to, at)
        for which in (KEYS, VALUES):
            target, source = (
                (page, slice(None), *_scale_place(v_pages.shape[-1], which, slot))
                for page, slot in (to, at)
            )
            k_pages[target] = k_pages[source]

    def cpu_scales(
        self,
        k_pages: Buffer,
        head_dim: int,
        which: int,
        page: Expr,
        kv_head: Expr,
        token: Expr,
        lanes: int = vector.LANES,
    ) -> Expr | None:
        scales = k_pages[page, kv_head, head_dim + which, T.ramp(4 * token, 1, 4 * lanes)]
        return T.Bind(T.reinterpret(scales, dtype=f"float32x{lanes}"))

    def cpu_stored(
        self, vectors: list[Expr], k_pages: Buffer, which: int, place: Place
    ) -> list[Expr]:
        largest = vector.splat(SMALLEST)
        for x in vectors:
            largest = T.max(largest, T.max(x, vector.splat(0.0) - x))
        scale = T.Bind(vector.fold(T.max, T.Bind(largest)) * T.float32(1 / LARGEST))
        factor = T.Bind(vector.splat(T.float32(1) / scale))
        bound = vector.splat(LARGEST)
        integers = [
            T.Cast("int8x16", T.nearbyint(T.max(-bound, T.min(x * factor, bound)))) for x in vectors
        ]
        page, kv_head, slot = place
        index = _scale_bytes(len(vectors) * vector.LANES, which, slot)
        T.buffer_store(k_pages, T.reinterpret(scale, dtype="int8x4"), [page, kv_head, *index])
        return integers

    def cpu_copy_key(
        self, target: Buffer, source: Buffer, head_dim: int, to: Place, at: Place
    ) -> None:
        super().cpu_copy_key(target, source, head_dim, to, at)
        for which in (KEYS, VALUES):
            value = source[(at[0], at[1], *_scale_bytes(head_dim, which, at[2]))]
            T.buffer_store(target, value, [to[0], to[1], *_scale_bytes(head_dim, which, to[2])])

    def gpu_load(self, pool: Buffer, index: list[Expr]) -> Expr:
        return T.Cast("float32", pool[tuple(index)])

    def gpu_store(self, pool: Buffer, x: Expr, index: list[Expr]) -> None:
        T.buffer_store(pool, T.Cast("int8", _rounded(x)), index)

    def gpu_scales(self, k_pages: Buffer, head_dim: int) -> Buffer | None:
        pointer = T.Bind(T.reinterpret(k_pages.data, dtype=T.handle("float32").ty))
        shape = *k_pages.shape[:2], head_dim + self.scale_rows, ROW_SCALES
        return T.decl_buffer(shape, "float32", data=pointer)

    def gpu_scale(
        self, each: Callable[[Expr], tuple[Expr, ...]], count: Expr, thread: Expr
    ) -> tuple[Expr, Expr] | None:
        largest = registers(1, value=SMALLEST)
        with strided(count, thread) as i:
            for value in each(i):
                T.buffer_store(largest, T.max(largest[0], T.max(value, -value)), [0])
        everywhere = reduced(T.max, shared((THREADS,)), largest[0], thread)
        scale = T.Bind(everywhere * constant(1 / LARGEST))
        return scale, T.Bind(T.float32(1) / scale)


INT8 = Int8()


def _scale_place(head_dim: int, which: int, slot: int) -> tuple[int, slice]:
    """(row, columns) of the 4 bytes of a token's scale in a key page."""
    column = slot % ROW_SCALES * 4
    return head_dim + which + slot // ROW_SCALES, slice(column, column + 4)


def _scale_bytes(head_dim: int, which: int, slot: Expr) -> tuple[Expr, Expr]:
    """_scale_place in TIR."""
    row = T.Bind(head_dim + which + slot // ROW_SCALES)
    return row, T.ramp(T.Bind(slot % ROW_SCALES * 4), 1, 4)


def _rounded(x: Expr) -> Expr:
    """The int32 nearest to a float32, at most 127 from 0, ties to even; devices differ in what they
    call it.
    """
    bounded = T.Bind(T.max(T.float32(-LARGEST), T.min(x, T.float32(LARGEST))))
    below = T.Bind(T.floor(bounded))
    rest, whole = T.Bind(bounded - below), T.Bind(T.Cast("int32", below))
    up = T.Or(
        rest > T.float32(0.5), T.And(rest.equal(T.float32(0.5)), T.bitwise_and(whole, 1).equal(1))
    )
    return T.Bind(whole + T.Select(up, 1, 0))
