"""Values of 5 or 6 bits: nibbles, and behind those of each 32 columns their high bits.

In the layout rows16, the low nibbles are 16 stored rows (nibbles.py). Of 4 rows of high bits (8 for
two), row c % 4 (c % 8) has those of column c, the lowest columns in the lowest bits. In rows16x4
four rows of low nibbles, and one row of high bits (two) by quads in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.nibbles import HALF, Nibbles
from minicpm_mlc.ops.formats.weights.packing import QUADS, ROWS16
from minicpm_mlc.ops.formats.weights.values import (
    REGISTERS,
    Values,
    quad_bits,
    quad_place,
    small_integer,
    some_bits,
)
from minicpm_mlc.ops.tir import Buffer, Expr, T, splat, typed


@dataclass(frozen=True)
class HighBits(Values):
    """Values 0..2^bits - 1 that stand for the numbers -zero..2^bits - 1 - zero."""

    bits: int
    zero: int
    dtype = written_as = "uint8"
    columns = 2  # of its low nibbles, and in a word
    takes_int8 = unsigned = True
    held = 2
    low = Nibbles(zero=0)

    @property
    def largest(self) -> int:
        """The largest value."""
        return (1 << self.bits) - 1

    @property
    def high(self) -> int:
        """High bits of a value."""
        return self.bits - 4

    def group_rows(self, layout: str) -> int:
        return sum(self._parts(layout))

    def pack(self, values: np.ndarray, layout: str) -> np.ndarray:
        filled = np.pad(values, ((0, -len(values) % LANES), (0, 0)), constant_values=self.zero)
        low = self.low.pack(filled & 15, layout)
        whole = super().pack(filled >> 4, layout)
        _, high_rows = self._parts(layout)
        places = whole.reshape(len(whole), -1, 8 // self.high, high_rows, whole.shape[-1])
        high = np.bitwise_or.reduce(places << self._shifts, axis=2)
        low = low.reshape(*high.shape[:2], -1, whole.shape[-1])
        return np.concatenate([low, high], axis=2).reshape(len(whole), -1, whole.shape[-1])

    def unpack(self, packed: np.ndarray, rows: int, layout: str) -> np.ndarray:
        low_rows, high_rows = self._parts(layout)
        blocks, _, width = packed.shape
        groups = packed.reshape(blocks, -1, low_rows + high_rows, width)
        low, high = (
            np.ascontiguousarray(part).reshape(blocks, -1, width)
            for part in (groups[:, :, :low_rows], groups[:, :, low_rows:])
        )
        places = high.reshape(blocks, -1, 1, high_rows, width) >> self._shifts
        places &= (1 << self.high) - 1
        whole = super().unpack(places.reshape(blocks, -1, width), rows, layout)
        return self.low.unpack(low, rows, layout) | whole << 4

    def numbers(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32) - self.zero

    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(0, 256, shape).astype(np.uint8)

    def pair(
        self, stored: Buffer, block: Expr, g: Expr, j: Expr, lane: Expr, lanes: int, layout: str
    ) -> tuple[Expr, Expr]:
        first, second = (
            self._number(stored, block, g, half + j, lane, lanes, layout) for half in (0, HALF)
        )
        return first, second

    def word(self, read: Callable[[Expr], Expr], step: Expr) -> list[list[Expr]]:
        low_rows, high_rows = self._parts(ROWS16)
        low, high = read(step), read(low_rows + step % high_rows)
        first = step // high_rows * self.high  # bit of the first column's high bits
        return [
            [
                self._small(low, 8 * row + 4 * half, high, 8 * row + 4 * half + first)
                for row in range(self.rows)
            ]
            for half in (0, 1)
        ]

    def registers(
        self, stored: Buffer, block: Expr, g: Expr, first: Expr, width: int
    ) -> Iterator[Expr]:
        lanes, start = T.ramp(first, 1, width), g * self.group_rows(QUADS)
        low_rows, high_rows = self._parts(QUADS)
        high = [T.Bind(stored[block, start + low_rows + i, lanes]) for i in range(high_rows)]
        for i in range(low_rows):
            low = T.Bind(stored[block, start + i, lanes])
            for second in range(2):
                at = 2 * i + second
                above = self._above(high[at % high_rows], at // high_rows, width)
                yield T.Bind(self._nibble(low, second, width) | above)

    def quads(self, read: Callable[[int], Expr]) -> list[Expr]:
        low_rows, high_rows = self._parts(QUADS)
        words = [T.Bind(read(i)) for i in range(low_rows + high_rows)]
        mask = (1 << self.high) - 1 << 4
        return [
            T.Bind(
                quad_bits(words[i // 2], i % 2 * 4, 15)
                | quad_bits(words[low_rows + i % high_rows], i // high_rows * self.high - 4, mask)
            )
            for i in range(REGISTERS)
        ]

    def quad_pairs(self, read: Callable[[Expr], list[Expr]], t: Expr) -> list[tuple[Expr, Expr]]:
        (low_rows, high_rows), low = self._parts(QUADS), self.low.quad_pairs(read, t)
        above = []
        for i in (T.Bind(2 * t), T.Bind(2 * t + 1)):
            shift = T.Cast("uint32", i // high_rows * self.high)
            words = read(T.Bind(low_rows + i % high_rows))
            moved = [T.Bind(T.shift_right(word, shift)) for word in words]
            above.append([quad_bits(word, -4, (1 << self.high) - 1 << 4) for word in moved])
        return [
            (T.Bind(pair[0] | first), T.Bind(pair[1] | second))
            for pair, first, second in zip(low, *above, strict=True)
        ]

    @property
    def _shifts(self) -> np.ndarray:
        """Where the high bits that share a byte lie, uint8 [places, 1, 1]."""
        return np.arange(0, 8, self.high, dtype=np.uint8)[:, None, None]

    def _parts(self, layout: str) -> tuple[int, int]:
        """Stored rows of 32 columns: of low nibbles, and of high bits."""
        return (REGISTERS // 2, self.high) if layout == QUADS else (HALF, 4 * self.high)

    def _small(self, low: Expr, low_at: int, high: Expr, high_at: Expr) -> Expr:
        """The float32 number whose bits lie there in two words."""
        above = some_bits(high, high_at, (1 << self.high) - 1)
        bits = T.bitwise_or(some_bits(low, low_at, 15), T.shift_left(above, T.uint32(4)))
        return small_integer(bits, self.zero)

    def _nibble(self, loaded: Expr, second: int, width: int) -> Expr:
        return T.shift_right(loaded, _byte(4, width)) if second else loaded & _byte(15, width)

    def _above(self, loaded: Expr, place: int, width: int) -> Expr:
        """High bits, at their places in a value. Pairs of bytes are shifted: of single ones LLVM
        makes a mask for each place, which takes registers.
        """
        by, pairs = 4 - place * self.high, width // 2
        shift = T.shift_left if by >= 0 else T.shift_right
        words = T.reinterpret(loaded, dtype=f"uint16x{pairs}")
        moved = shift(words, T.broadcast(T.uint16(abs(by)), pairs)) if by else words
        bytes_ = T.reinterpret(moved, dtype=f"uint8x{width}")
        return bytes_ & _byte((1 << self.high) - 1 << 4, width)

    def _number(
        self,
        stored: Buffer,
        block: Expr,
        g: Expr,
        column: Expr,
        lane: Expr,
        lanes: int,
        layout: str,
    ) -> Expr:
        """float32 of a group's column."""
        low_rows, high_rows = self._parts(layout)
        row, low_at = column % HALF, column // HALF * 4
        if layout == QUADS:
            column, lane = quad_place(column, lane)
            row, low_at = column // 2, column % 2 * 4

        def bits(row: Expr, at: Expr, mask: int) -> Expr:
            byte = stored[block, g * (low_rows + high_rows) + row, lane]
            shifted = T.shift_right(
                T.Cast(typed("int32", lanes), byte), splat(T.Cast("int32", at), lanes)
            )
            return T.bitwise_and(shifted, splat(T.int32(mask), lanes))

        above = bits(
            low_rows + column % high_rows, column // high_rows * self.high, (1 << self.high) - 1
        )
        value = bits(row, low_at, 15) | T.shift_left(above, splat(T.int32(4), lanes))
        return T.Cast(typed("float32", lanes), value - splat(T.int32(self.zero), lanes))


def _byte(value: int, width: int) -> Expr:
    return T.broadcast(T.uint8(value), width)
