"""How keys and values lie in their pages: float32, float16, bfloat16, or int8 with a float32 scale
per token and head.

bfloat16 is stored as its bits, uint16. An int8 key page has 8 rows of 64 bytes more than head_dim:
4 with the 64 float32 scales of its tokens' keys, 4 with those of their values. So every format has
the same two pools.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.bundle.manifest import KV_STORAGE, PAGE_SIZE, SCALE_ROWS, key_rows
from minicpm_mlc.ops.cpu import vector

KEYS, VALUES = 0, SCALE_ROWS  # where their scales begin behind the keys
LARGEST = 127.0
SMALLEST = 1e-30  # a largest component below this counts as this, so that its inverse is finite


def key_shape(kv_dtype: str, num_kv_heads: int, head_dim: int) -> tuple[int, int, int]:
    """One page of keys; of values: [num_kv_heads, 64, head_dim]."""
    return num_kv_heads, key_rows(kv_dtype, head_dim), PAGE_SIZE


def pools(
    k_pages: Any, v_pages: Any, num_pages: Any, kv_dtype: str, num_kv_heads: int, head_dim: int
) -> tuple[Any, Any]:
    """The two pools as buffers of a PrimFunc, from its handles."""
    storage = KV_STORAGE[kv_dtype]
    keys = T.match_buffer(
        k_pages, (num_pages, *key_shape(kv_dtype, num_kv_heads, head_dim)), storage
    )
    return keys, T.match_buffer(v_pages, (num_pages, num_kv_heads, PAGE_SIZE, head_dim), storage)


def quantize_definition(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [..., d] -> int8 of the same shape, and float32 scales [...]: the largest component becomes
    127.
    """
    scales = (np.maximum(np.abs(x).max(-1), SMALLEST) / LARGEST).astype(np.float32)
    return np.rint(x / scales[..., None]).astype(np.int8), scales


def read_definition(k_pages: np.ndarray, v_pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What pools stand for, as float64 [pages, kv_heads, d, 64] and [pages, kv_heads, 64, d]."""
    head_dim = v_pages.shape[-1]
    if v_pages.dtype == np.uint16:
        k_pages, v_pages = (
            (pool.astype(np.uint32) << 16).view(np.float32) for pool in (k_pages, v_pages)
        )
    if v_pages.dtype != np.int8:
        return k_pages.astype(np.float64), v_pages.astype(np.float64)
    rows = np.ascontiguousarray(k_pages[:, :, head_dim:]).view(np.float32).astype(np.float64)
    scales = rows.reshape(*rows.shape[:2], 2, PAGE_SIZE)
    return k_pages[:, :, :head_dim] * scales[:, :, :1], v_pages * scales[:, :, 1, :, None]


def write_definition(
    k_pages: np.ndarray, v_pages: np.ndarray, page: int, slot: int, k: np.ndarray, v: np.ndarray
) -> None:
    """Store one token's keys and values [kv_heads, d] at place `slot` of a page, in the pools'
    format.
    """
    head_dim = v.shape[-1]
    if v_pages.dtype == np.int8:
        k, k_scales = quantize_definition(k)
        v, v_scales = quantize_definition(v)
        scales = k_pages[page, :, head_dim:].reshape(len(k), 2, PAGE_SIZE * 4)
        for i, values in enumerate((k_scales, v_scales)):
            scales[:, i, 4 * slot : 4 * slot + 4] = values[:, None].view(np.int8)
        k_pages[page, :, head_dim:] = scales.reshape(len(k), -1, PAGE_SIZE)
    elif v_pages.dtype == np.uint16:
        k, v = bfloat16_bits(k), bfloat16_bits(v)
    k_pages[page, :, :head_dim, slot] = k
    v_pages[page, :, slot] = v


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """uint16 bits of the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def load(pool: Any, *index: Any) -> Any:
    """16 elements from `index` on along the last axis as float32; of int8 without their scales."""
    if pool.dtype != "uint16":
        return vector.load(pool, *index)
    bits = T.Cast("uint32x16", pool[(*index[:-1], T.ramp(index[-1], 1, vector.LANES))])
    return T.reinterpret(
        T.shift_left(bits, T.broadcast(T.uint32(16), vector.LANES)), dtype="float32x16"
    )


def stored(x: Any, storage: str) -> Any:
    """16 float32 lanes as a pool of a format without scales stores them."""
    if storage == "float32":
        return x
    if storage == "float16":
        return T.Cast("float16x16", x)
    bits = T.Bind(T.reinterpret(x, dtype="uint32x16"))
    half, one = (T.broadcast(T.uint32(value), vector.LANES) for value in (0x7FFF, 1))
    sixteen = T.broadcast(T.uint32(16), vector.LANES)
    rounded = bits + half + T.bitwise_and(T.shift_right(bits, sixteen), one)
    return T.Cast("uint16x16", T.shift_right(rounded, sixteen))


def quantized(vectors: list[Any]) -> tuple[list[Any], Any]:
    """The components of one token as int8 vectors, and the scale, as in quantize_definition."""
    largest = vector.splat(SMALLEST)
    for x in vectors:
        largest = T.max(largest, T.max(x, vector.splat(0.0) - x))
    scale = T.Bind(vector.fold(T.max, T.Bind(largest)) * T.float32(1 / LARGEST))
    factor = T.Bind(vector.splat(T.float32(1) / scale))
    bound = vector.splat(LARGEST)
    return [
        T.Cast("int8x16", T.nearbyint(T.max(-bound, T.min(x * factor, bound)))) for x in vectors
    ], scale


def has_scales(pools: tuple[Any, Any]) -> bool:
    return pools[1].dtype == "int8"


def scales(pools: tuple[Any, Any], which: int, page: Any, kv_head: Any, sixteen: Any) -> Any:
    """Scales of the KEYS or VALUES of tokens 16 * sixteen .. + 15 of an int8 page."""
    k_pages, v_pages = pools
    return sixteen_scales(k_pages, int(v_pages.shape[-1]) + which + sixteen, page, kv_head)


def segment_scales(
    k_pages: Any, head_dim: int, page: Any, kv_head: Any, segment: Any
) -> Any | None:
    """The scales of 16 tokens' keys, or None in a format without scales."""
    if k_pages.dtype != "int8":
        return None
    return sixteen_scales(k_pages, head_dim + KEYS + segment, page, kv_head)


def sixteen_scales(k_pages: Any, row: Any, page: Any, kv_head: Any) -> Any:
    """A row of an int8 key page behind its keys."""
    return T.Bind(
        T.reinterpret(
            k_pages[page, kv_head, row, T.ramp(0, 1, 4 * vector.LANES)], dtype="float32x16"
        )
    )


def scale_bytes(head_dim: int, which: int, slot: Any) -> tuple[Any, Any]:
    """(row, column) of a token's scale in a key page, 4 bytes."""
    return T.Bind(head_dim + which + slot // vector.LANES), T.ramp(
        T.Bind(slot % vector.LANES * 4), 1, 4
    )


def put_scale(
    k_pages: Any, scale: Any, head_dim: int, which: int, page: Any, kv_head: Any, slot: Any
) -> None:
    """Store the scale of one token's keys or values."""
    T.buffer_store(
        k_pages,
        T.reinterpret(scale, dtype="int8x4"),
        [page, kv_head, *scale_bytes(head_dim, which, slot)],
    )


def copy_key(
    target: Any, source: Any, head_dim: int, to: tuple[Any, Any, Any], at: tuple[Any, Any, Any]
) -> None:
    """One token's key and, in int8, both its scales, from (page, head, slot) `at` to `to`, bit for
    bit.
    """
    with T.serial(head_dim) as i:
        T.buffer_store(target, source[at[0], at[1], i, at[2]], [to[0], to[1], i, to[2]])
    if source.dtype == "int8":
        for which in (KEYS, VALUES):
            value = source[(at[0], at[1], *scale_bytes(head_dim, which, at[2]))]
            T.buffer_store(target, value, [to[0], to[1], *scale_bytes(head_dim, which, to[2])])
