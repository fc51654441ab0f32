"""int8 as a processor's integer dot products take it: four numbers that are multiplied at once lie
side by side.

The rows of a page's keys are components, those of its values tokens. Four rows follow each other
column by column: the four numbers of column 0, the four of column 1, and so on. Scales lie where
int8 has them.

Attention then rounds its queries too, by row and head, and the softmax weights of each page, once
they are multiplied by their values' scales: the largest becomes `levels`, or 127 of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv.base import Place
from minicpm_mlc.ops.formats.kv.int8 import INT8, LARGEST, SMALLEST, Int8, quantize
from minicpm_mlc.ops.tir import Buffer, Expr, T

TOGETHER = 4  # rows


@dataclass(frozen=True, repr=False)
class Int8Words(Int8):
    """`levels`: the largest integer of a query. 127, or 64 where only products of 8 by 7 bits are
    exact.
    """

    levels: int = 127

    @property
    def key(self) -> str:
        """What tells it from int8 and from other levels."""
        return f"{self.name} words {self.levels}"

    def __repr__(self) -> str:
        return self.key

    @property
    def words(self) -> bool:
        return True

    def fits(self, traits: Any) -> bool:
        return traits.laid_out(INT8) == self

    def place(self, row: Any, column: Any, columns: int) -> tuple[Any, Any]:
        four = TOGETHER * column
        return row // TOGETHER * TOGETHER + four // columns, four % columns + row % TOGETHER

    def _rows(self, pool: np.ndarray) -> np.ndarray:
        *pages, rows, columns = pool.shape
        words = pool.reshape(*pages, rows // TOGETHER, columns, TOGETHER)
        return words.swapaxes(-1, -2).reshape(pool.shape)

    def rounded_queries(self, q: np.ndarray) -> np.ndarray:
        return _rounded(q, self.levels)

    def rounded_means(self, means: np.ndarray) -> np.ndarray:
        return _rounded(means, int(LARGEST))

    def rounded_weights(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        scales = quantize(values)[1][..., None, :].astype(np.float64)
        scaled = weights * scales
        step = np.maximum(scaled.max(-1, keepdims=True), SMALLEST) / LARGEST
        return np.floor(scaled / step + 0.5) * step / scales

    def cpu_words(self, pool: Buffer, *index: Expr, lanes: int) -> Expr:
        page, kv_head, row, column = index
        bytes_ = T.ramp(TOGETHER * column, 1, TOGETHER * lanes)  # past the row: its words follow
        return pool[page, kv_head, row // TOGETHER * TOGETHER, bytes_]

    def cpu_load(self, pool: Buffer, *index: Expr) -> Expr:
        words = T.reinterpret(self.cpu_words(pool, *index, lanes=vector.LANES), dtype="int32x16")
        above = T.Bind(T.Cast("int32", (TOGETHER - 1 - index[2] % TOGETHER) * 8))
        shifted = T.shift_left(words, T.broadcast(above, vector.LANES))
        return T.Cast("float32x16", T.shift_right(shifted, T.broadcast(24, vector.LANES)))

    def cpu_store_key(self, k_pages: Buffer, key: Buffer, place: Place) -> None:
        page, kv_head, slot = place
        with T.serial(int(key.shape[0]) // TOGETHER) as word:
            at = T.ramp(T.Bind(TOGETHER * slot), 1, TOGETHER)
            four = key[T.ramp(TOGETHER * word, 1, TOGETHER)]
            T.buffer_store(k_pages, four, [page, kv_head, TOGETHER * word, at])

    def cpu_store_value(self, v_pages: Buffer, value: list[Expr], place: Place) -> None:
        page, kv_head, slot = place
        row, within = T.Bind(slot // TOGETHER * TOGETHER), T.Bind(slot % TOGETHER)
        for j, x in enumerate(value):
            at = T.ramp(TOGETHER * vector.LANES * j + within, TOGETHER, vector.LANES)
            T.buffer_store(v_pages, x, [page, kv_head, row, at])

    def cpu_copy_value(
        self, target: Buffer, source: Buffer, head_dim: int, to: Place, at: Place
    ) -> None:
        with T.serial(head_dim) as i:
            here, there = ([*place[:2], *self.place(place[2], i, head_dim)] for place in (to, at))
            T.buffer_store(target, source[tuple(there)], here)


def _rounded(x: np.ndarray, levels: int) -> np.ndarray:
    """x [..., d] in `levels` steps of its largest component, computed in float32."""
    x = x.astype(np.float32)
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(SMALLEST))
    return np.rint(x * (np.float32(levels) / largest)) * (largest / np.float64(levels))
