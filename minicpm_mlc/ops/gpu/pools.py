"""One layer's keys and values in their pages, in every format of ops/formats/kv.py, read as
float32.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.bundle.manifest import KV_STORAGE, PAGE_SIZE
from minicpm_mlc.ops.formats.kv import KEYS, LARGEST, SMALLEST, VALUES, key_rows, key_shape
from minicpm_mlc.ops.gpu.half import HalfBuffer, bfloat16_bits, constant, from_bfloat16
from minicpm_mlc.ops.gpu.kernel import THREADS, reduced, registers, shared, store, strided

ROW_SCALES = PAGE_SIZE // 4  # float32 scales in a row of 64 bytes


def pool_arguments(num_kv_heads: int, head_dim: int, kv_dtype: str) -> dict[str, tuple]:
    """The pools of one layer, as arguments of a kernel."""
    storage = KV_STORAGE[kv_dtype]
    return {
        "k_pages": (storage, "num_pages", *key_shape(kv_dtype, num_kv_heads, head_dim)),
        "v_pages": (storage, "num_pages", num_kv_heads, PAGE_SIZE, head_dim),
    }


class Pools:
    """The elements of both pools by page, KV head, component and place; int8 ones without their
    scale.
    """

    def __init__(self, kv_dtype: str, head_dim: int, k_pages: Any, v_pages: Any = None) -> None:
        """Made outside of workgroups; `v_pages` only where values are touched."""
        self.kv_dtype, self.head_dim, self.keys, self.values = kv_dtype, head_dim, k_pages, v_pages
        self.scales = None
        if kv_dtype == "int8":
            pointer = T.Bind(T.reinterpret(k_pages.data, dtype=T.handle("float32").ty))
            pages, heads = k_pages.shape[:2]
            rows = key_rows(kv_dtype, head_dim)
            self.scales = T.decl_buffer((pages, heads, rows, ROW_SCALES), "float32", data=pointer)

    def key(self, page: Any, kv_head: Any, component: Any, offset: Any) -> Any:
        return self._read(self.keys, [page, kv_head, component, offset])

    def value(self, page: Any, kv_head: Any, component: Any, offset: Any) -> Any:
        return self._read(self.values, [page, kv_head, offset, component])

    def scaled_by(self, x: Any, which: int, page: Any, kv_head: Any, offset: Any) -> Any:
        """x times the scale of a token's KEYS or VALUES."""
        return (
            x if self.scales is None else x * self.scales[self._scale(which, page, kv_head, offset)]
        )

    def put_key(self, page: Any, kv_head: Any, component: Any, offset: Any, x: Any) -> None:
        self._write(self.keys, x, [page, kv_head, component, offset])

    def put_value(self, page: Any, kv_head: Any, component: Any, offset: Any, x: Any) -> None:
        self._write(self.values, x, [page, kv_head, offset, component])

    def put_scale(self, which: int, page: Any, kv_head: Any, offset: Any, scale: Any) -> None:
        T.buffer_store(self.scales, scale, list(self._scale(which, page, kv_head, offset)))

    def copy(self, component: Any, kv_head: Any, to: tuple[Any, Any], at: tuple[Any, Any]) -> None:
        """One component of a token's key and value, from (page, offset) `at` to `to`, bit for bit;
        with component 0 the scales too."""
        keys, values = (
            pool.bits if isinstance(pool, HalfBuffer) else pool for pool in (self.keys, self.values)
        )
        T.buffer_store(
            keys, keys[at[0], kv_head, component, at[1]], [to[0], kv_head, component, to[1]]
        )
        T.buffer_store(
            values, values[at[0], kv_head, at[1], component], [to[0], kv_head, to[1], component]
        )
        if self.scales is not None:
            with T.If(component.equal(0)), T.Then():
                for which in (KEYS, VALUES):
                    source = self.scales[self._scale(which, at[0], kv_head, at[1])]
                    self.put_scale(which, to[0], kv_head, to[1], source)

    def _scale(self, which: int, page: Any, kv_head: Any, offset: Any) -> tuple[Any, ...]:
        return page, kv_head, self.head_dim + which + offset // ROW_SCALES, offset % ROW_SCALES

    def _read(self, pool: Any, index: list[Any]) -> Any:
        if self.kv_dtype == "bfloat16":
            return from_bfloat16(pool[tuple(index)])
        value = pool[tuple(index)]
        return T.Cast("float32", value) if self.kv_dtype == "int8" else value

    def _write(self, pool: Any, x: Any, index: list[Any]) -> None:
        if self.kv_dtype == "bfloat16":
            T.buffer_store(pool, bfloat16_bits(x), index)
        elif self.kv_dtype == "int8":
            T.buffer_store(pool, T.Cast("int8", rounded(x)), index)
        else:
            store(pool, x, index)


def int8_scale(each: Any, count: int, thread: Any) -> tuple[Any, Any]:
    """(scale, its inverse) of the values that `each(i)` gives for i < count, as
    kv_format.quantize_definition has it.
    """
    largest = registers(1, value=SMALLEST)
    with strided(count, thread) as i:
        for value in each(i):
            T.buffer_store(largest, T.max(largest[0], T.max(value, -value)), [0])
    everywhere = reduced(T.max, shared((THREADS,)), largest[0], thread)
    scale = T.Bind(everywhere * constant(1 / LARGEST))
    return scale, T.Bind(T.float32(1) / scale)


def rounded(x: Any) -> Any:
    """The int32 nearest to a float32 of -127.5 .. 127.5, ties to even; devices differ in what they
    call it.
    """
    bounded = T.Bind(T.max(T.float32(-LARGEST), T.min(x, T.float32(LARGEST))))
    below = T.Bind(T.floor(bounded))
    rest, whole = T.Bind(bounded - below), T.Bind(T.Cast("int32", below))
    up = T.Or(
        rest > T.float32(0.5), T.And(rest.equal(T.float32(0.5)), T.bitwise_and(whole, 1).equal(1))
    )
    return T.Bind(whole + T.Select(up, 1, 0))
