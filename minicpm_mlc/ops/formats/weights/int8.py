"""8-bit signed values, a byte each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.packing import QUADS
from minicpm_mlc.ops.formats.weights.values import (
    REGISTERS,
    Values,
    bit_field,
    quad_place,
)
from minicpm_mlc.ops.tir import Buffer, Expr, T, typed


class Int8Values(Values):
    """Values -127..127 that stand for themselves."""

    bits = 8
    dtype = written_as = "int8"
    takes_int8 = True

    def numbers(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)

    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(-127, 128, shape).astype(np.int8)

    def pair(
        self, stored: Buffer, block: Expr, g: Expr, j: Expr, lane: Expr, lanes: int, layout: str
    ) -> tuple[Expr, Expr]:
        first, second = (
            self._number(stored, block, g * GROUP + half + j, lane, lanes, layout)
            for half in (0, 16)
        )
        return first, second

    def word(self, read: Callable[[Expr], Expr], step: Expr) -> list[list[Expr]]:
        flipped = T.Bind(T.bitwise_xor(read(step), T.uint32(0x80808080)))  # 128 more
        return [[bit_field(flipped, 8 * row, 8, 128) for row in range(self.rows)]]

    def registers(
        self, stored: Buffer, block: Expr, g: Expr, first: Expr, width: int
    ) -> Iterator[Expr]:
        lanes = T.ramp(first, 1, width)
        return (T.Bind(stored[block, g * REGISTERS + i, lanes]) for i in range(REGISTERS))

    def quads(self, read: Callable[[int], Expr]) -> list[Expr]:
        return [T.Bind(read(i)) for i in range(REGISTERS)]

    def quad_pairs(self, read: Callable[[Expr], list[Expr]], t: Expr) -> list[tuple[Expr, Expr]]:
        return list(zip(read(T.Bind(2 * t)), read(T.Bind(2 * t + 1)), strict=True))

    def _number(
        self, stored: Buffer, block: Expr, column: Expr, lane: Expr, lanes: int, layout: str
    ) -> Expr:
        if layout == QUADS:
            quad, byte = quad_place(column, lane)
            return T.Cast("float32", T.Cast("int32", stored[block, quad, byte]))
        return T.Cast(typed("float32", lanes), stored[block, column, lane])
