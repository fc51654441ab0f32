"""4-bit values, two columns to a byte.

In the layout rows16, byte j < 16 of a group of 32 columns holds column j in its low nibble and
column 16 + j in its high one; in rows16x4, the bytes of a quad of columns hold the next quad in
their high nibbles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.packing import (
    QUAD,
    QUADS,
    deinterleave,
    deinterleave_quads,
    interleave,
    interleave_quads,
)
from minicpm_mlc.ops.formats.weights.values import (
    REGISTERS,
    Values,
    bit_field,
    quad_bits,
    quad_place,
)
from minicpm_mlc.ops.tir import Buffer, Expr, T, splat, typed

HALF = GROUP // 2


@dataclass(frozen=True)
class Nibbles(Values):
    """Values 0..15 that stand for the numbers -zero..15 - zero."""

    zero: int
    bits = 4
    dtype = written_as = "uint8"
    columns = 2
    takes_int8 = unsigned = True
    largest = 15

    def pack(self, values: np.ndarray, layout: str) -> np.ndarray:
        if layout == QUADS:
            quads = interleave_quads(values, self.zero)
            return quads[:, 0::2] | quads[:, 1::2] << 4
        return interleave(_join(values), self.zero * 0x11)

    def unpack(self, packed: np.ndarray, rows: int, layout: str) -> np.ndarray:
        if layout == QUADS:
            quads = np.stack((packed & 15, packed >> 4), axis=2)
            return deinterleave_quads(quads.reshape(len(packed), -1, LANES * QUAD), rows)
        return _split(deinterleave(packed, rows))

    def numbers(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32) - self.zero

    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(0, 256, shape).astype(np.uint8)

    def pair(
        self, stored: Buffer, block: Expr, g: Expr, j: Expr, lane: Expr, lanes: int, layout: str
    ) -> tuple[Expr, Expr]:
        if layout == QUADS:
            low, high = (self._in_quad(stored, block, g * GROUP + h + j, lane) for h in (0, HALF))
        else:
            byte = T.Cast(typed("int32", lanes), stored[block, g * HALF + j, lane])
            low = T.bitwise_and(byte, splat(T.int32(15), lanes))
            high = T.shift_right(byte, splat(T.int32(4), lanes))
        return self._number(low, lanes), self._number(high, lanes)

    def word(self, read: Callable[[Expr], Expr], step: Expr) -> list[list[Expr]]:
        word = read(step)
        return [
            [bit_field(word, 8 * row + nibble, 4, self.zero) for row in range(self.rows)]
            for nibble in (0, 4)
        ]

    def registers(
        self, stored: Buffer, block: Expr, g: Expr, first: Expr, width: int
    ) -> Iterator[Expr]:
        lanes, loads = T.ramp(first, 1, width), REGISTERS // 2
        for i in range(loads):
            loaded = T.Bind(stored[block, g * loads + i, lanes])
            yield T.Bind(loaded & T.broadcast(T.uint8(15), width))
            yield T.Bind(T.shift_right(loaded, T.broadcast(T.uint8(4), width)))

    def quads(self, read: Callable[[int], Expr]) -> list[Expr]:
        words = [T.Bind(read(i)) for i in range(REGISTERS // 2)]
        return [quad_bits(word, at, 15) for word in words for at in (0, 4)]

    def quad_pairs(self, read: Callable[[Expr], list[Expr]], t: Expr) -> list[tuple[Expr, Expr]]:
        return [(quad_bits(word, 0, 15), quad_bits(word, 4, 15)) for word in read(t)]

    def _in_quad(self, stored: Buffer, block: Expr, column: Expr, lane: Expr) -> Expr:
        """int32 value of one column of one row in the layout rows16x4."""
        quad, byte = quad_place(column, lane)
        shift = T.Cast("int32", quad % 2 * 4)
        return T.bitwise_and(
            T.shift_right(T.Cast("int32", stored[block, quad // 2, byte]), shift), 15
        )

    def _number(self, value: Expr, lanes: int) -> Expr:
        shifted = value - splat(T.int32(self.zero), lanes) if self.zero else value
        return T.Cast(typed("float32", lanes), shifted)


def _join(values: np.ndarray) -> np.ndarray:
    rows, columns = values.shape
    groups = values.reshape(rows, columns // GROUP, 2, HALF)
    return (groups[:, :, 0] | groups[:, :, 1] << 4).reshape(rows, columns // 2)


def _split(joined: np.ndarray) -> np.ndarray:
    rows, width = joined.shape
    groups = joined.reshape(rows, width // HALF, 1, HALF)
    return np.concatenate((groups & 15, groups >> 4), axis=2).reshape(rows, width * 2)
