"""How the values of a matrix, one per weight, lie in memory, and the TIR that reads them back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np

from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.packing import (
    QUAD,
    QUADS,
    blocks_of,
    deinterleave,
    deinterleave_quads,
    interleave,
    interleave_quads,
)
from minicpm_mlc.ops.tir import Buffer, Expr, T

REGISTERS = GROUP // QUAD  # of int8 weights in a group
# the bits of 2**23, which take a small integer as their last ones: cheaper than a conversion
MAGIC = 0x4B000000
MANTISSA = 23  # bits of a float32
HALFWAY = 12  # how far bits are moved that lie above them


class Values(ABC):
    """One kind of stored value. This base stores an element per value, as it is.

    `number` below is what a value stands for, before its group's scale and minimum.
    """

    bits: ClassVar[int]  # of a value
    dtype: ClassVar[str]  # of a stored element
    written_as: ClassVar[str]  # its name in tensor-cache.json, where bfloat16 has one
    columns: ClassVar[int] = 1  # of one row, in a stored element
    takes_int8: ClassVar[bool] = False  # whether int8 activations can meet them, by `registers`
    unsigned: ClassVar[bool] = False  # then: whether registers hold 0..largest
    largest: ClassVar[int] = 127  # or -largest..largest, both within int8
    held: ClassVar[int] = 1  # stored registers that unpacking one of `registers` keeps
    zero: int = 0  # the integer of the number 0

    @property
    def rows(self) -> int:
        """Rows in a 32-bit word of the layout rows16."""
        return 4 // np.dtype(self.dtype).itemsize

    def shape(self, rows: int, columns: int, layout: str) -> tuple[int, int, int]:
        """Stored shape of a matrix [rows, columns]."""
        width = LANES * (QUAD if layout == QUADS else 1)
        return blocks_of(rows), columns * self.group_rows(layout) // GROUP, width

    def pack(self, values: np.ndarray, layout: str) -> np.ndarray:
        """Values [n, k] -> stored elements; padding rows hold the number 0."""
        return (interleave_quads if layout == QUADS else interleave)(values, self.zero)

    def unpack(self, packed: np.ndarray, rows: int, layout: str) -> np.ndarray:
        """Inverse of `pack`: stored elements -> values [rows, k]."""
        return (deinterleave_quads if layout == QUADS else deinterleave)(packed, rows)

    @abstractmethod
    def numbers(self, values: np.ndarray) -> np.ndarray:
        """The numbers of values [n, k], float32, exactly."""

    @abstractmethod
    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Random stored elements."""

    @abstractmethod
    def pair(
        self, stored: Buffer, block: Expr, g: Expr, j: Expr, lane: Expr, lanes: int, layout: str
    ) -> tuple[Expr, Expr]:
        """float32 numbers of columns 32 g + j and 32 g + 16 + j, j < 16.

        Of one lane (a row of the block) or, in the layout rows16, of a vector of them.
        """

    def group_rows(self, layout: str) -> int:
        """Stored rows of 32 columns."""
        return GROUP // (self.columns * (QUAD if layout == QUADS else 1))

    @abstractmethod
    def word(self, read: Callable[[Expr], Expr], step: Expr) -> list[list[Expr]]:
        """float32 numbers of columns `step`, and 16 + step where there are two in an element, of
        neighbouring rows: read(i) is the uint32 that holds these rows in stored row i of the group,
        in the layout rows16.
        """

    def registers(
        self, stored: Buffer, block: Expr, g: Expr, first: Expr, width: int
    ) -> Iterator[Expr]:
        """The integers of a group in the layout rows16x4: eight vectors of `width` bytes from byte
        `first` on, which hold four columns each, in order. Each is read when it is asked for.
        """
        raise NotImplementedError(f"{self.dtype} weights meet no int8 activations")

    def quads(self, read: Callable[[int], Expr]) -> list[Expr]:
        """The integers of a row's group in the layout rows16x4, as uint32 of four columns each, in
        order: read(i) is the uint32 of that row in stored row i of the group.
        """
        raise NotImplementedError(f"{self.dtype} weights meet no int8 activations")

    def quad_pairs(self, read: Callable[[Expr], list[Expr]], t: Expr) -> list[tuple[Expr, Expr]]:
        """Quads 2 t and 2 t + 1 of `quads`, of several rows: read(i) are their words in stored row
        i.
        """
        raise NotImplementedError(f"{self.dtype} weights meet no int8 activations")


def quad_place(column: Expr, lane: Expr) -> tuple[Expr, Expr]:
    """(quad, byte) of a row's column in the layout rows16x4."""
    return column // QUAD, lane * QUAD + column % QUAD


def some_bits(word: Expr, shift: Expr, mask: int) -> Expr:
    """Bits of a uint32, as its last ones."""
    return T.bitwise_and(T.shift_right(word, T.Cast("uint32", shift)), T.uint32(mask))


def quad_bits(word: Expr, at: int, mask: int) -> Expr:
    """Bits of each byte of a uint32, from bit `at` on, as the last ones of that byte; above bit 0
    they move down, below they move up.
    """
    shift = T.shift_right if at >= 0 else T.shift_left
    moved = shift(word, T.uint32(abs(at))) if at else word
    return T.Bind(T.bitwise_and(moved, T.uint32(mask * 0x01010101)))


def bit_field(word: Expr, at: int, bits: int, zero: int) -> Expr:
    """The float32 of up to 8 bits of a bound uint32 from bit `at` on, less `zero`, exactly. They
    become bits of a float's mantissa where they lie, so that few have to be moved.
    """
    if at + bits > MANTISSA:
        return bit_field(T.Bind(T.shift_right(word, T.uint32(HALFWAY))), at - HALFWAY, bits, zero)
    mask, exponent = ((1 << bits) - 1) << at, (127 + MANTISSA - at) << MANTISSA
    number = T.bitwise_or(T.bitwise_and(word, T.uint32(mask)), T.uint32(exponent))
    offset = T.float32(2 ** (MANTISSA - at) + zero)
    return T.Bind(T.reinterpret(T.Bind(number), dtype="float32") - offset)


def small_integer(bits: Expr, zero: int) -> Expr:
    """The float32 of a small uint32, less `zero`."""
    return T.Bind(
        T.reinterpret(T.Bind(T.bitwise_or(bits, T.uint32(MAGIC))), dtype="float32")
        - T.float32(2**23 + zero)
    )
