"""One layer's keys and values in their pages, in any format of ops/formats/kv, read as float32."""

from __future__ import annotations

from minicpm_mlc.ops.formats.kv import KEYS, VALUES, KVFormat
from minicpm_mlc.ops.formats.kv.base import ROW_SCALES
from minicpm_mlc.ops.gpu.float16_bits import HalfBuffer
from minicpm_mlc.ops.tir import Buffer, Expr, T


class Pools:
    """The elements of both pools by page, KV head, component and place; scaled ones without their
    scale.
    """

    def __init__(
        self, kv: KVFormat, head_dim: int, k_pages: Buffer, v_pages: Buffer = None
    ) -> None:
        """Made outside of workgroups; `v_pages` only where values are touched."""
        self.kv, self.head_dim, self.keys, self.values = kv, head_dim, k_pages, v_pages
        self.scales = kv.gpu_scales(k_pages, head_dim)

    def key(self, page: Expr, kv_head: Expr, component: Expr, offset: Expr) -> Expr:
        return self.kv.gpu_load(self.keys, [page, kv_head, component, offset])

    def value(self, page: Expr, kv_head: Expr, component: Expr, offset: Expr) -> Expr:
        return self.kv.gpu_load(self.values, [page, kv_head, offset, component])

    def scaled_by(self, x: Expr, which: int, page: Expr, kv_head: Expr, offset: Expr) -> Expr:
        """x times the scale of a token's KEYS or VALUES."""
        if self.scales is None:
            return x
        return x * self.scales[self._scale(which, page, kv_head, offset)]

    def put_key(self, page: Expr, kv_head: Expr, component: Expr, offset: Expr, x: Expr) -> None:
        self.kv.gpu_store(self.keys, x, [page, kv_head, component, offset])

    def put_value(self, page: Expr, kv_head: Expr, component: Expr, offset: Expr, x: Expr) -> None:
        self.kv.gpu_store(self.values, x, [page, kv_head, offset, component])

    def put_scale(self, which: Expr, page: Expr, kv_head: Expr, offset: Expr, scale: Expr) -> None:
        T.buffer_store(self.scales, scale, list(self._scale(which, page, kv_head, offset)))

    def copy(
        self, component: Expr, kv_head: Expr, to: tuple[Expr, Expr], at: tuple[Expr, Expr]
    ) -> None:
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

    def _scale(self, which: Expr, page: Expr, kv_head: Expr, offset: Expr) -> tuple[Expr, ...]:
        return page, kv_head, self.head_dim + which + offset // ROW_SCALES, offset % ROW_SCALES
