"""A run of a block's weights as int8 products meet them: unpacked once, into L1, for many rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.int8_dot import Int8Dot
from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.base import Scheme, Stored, Terms
from minicpm_mlc.ops.formats.weights.values import REGISTERS
from minicpm_mlc.ops.tir import Buffer, Expr, T


@dataclass(frozen=True)
class WeightTable:
    """Of some groups of 32 columns, numbered from 0."""

    dot: Int8Dot
    scheme: Scheme
    registers: Buffer  # uint8[groups, 16 / dot rows, 8, 4 * dot rows]
    terms: Buffer  # f32[groups, scales and minimums, 16]

    @staticmethod
    def allocate(dot: Int8Dot, scheme: Scheme, groups: int) -> WeightTable:
        """Scratch for so many groups: 16 KiB and 2 to 8 KiB for 32."""
        registers = groups, LANES // dot.rows, REGISTERS, 4 * dot.rows
        terms = groups, scheme.terms_count, LANES
        buffers = T.alloc_buffer(registers, "uint8"), T.alloc_buffer(terms, "float32")
        return WeightTable(dot, scheme, *buffers)

    def put(self, i: Expr, stored: Stored, block: Expr, g: Expr) -> None:
        """The i-th group is the block's group g."""
        rows = self.dot.rows
        for part in range(LANES // rows):
            unpacked = self.dot.unpack(self.scheme, stored, block, g, part * rows)
            for at, register in enumerate(self.dot.arranged(unpacked, self.dot.tile)):
                T.buffer_store(self.registers, register, [i, part, at, T.ramp(0, 1, 4 * rows)])
        for at, number in enumerate(self._numbers(stored, block, g)):
            vector.store(self.terms, number, i, at, 0)

    def _numbers(self, stored: Stored, block: Expr, g: Expr) -> Iterator[Expr]:
        """Scale, and minimum, of a group; of its first half, then of its second."""
        for half in range(self.scheme.halves):
            terms = self.scheme.terms(stored, block, g, T.ramp(0, 1, LANES), LANES, half)
            yield from (number for number in (terms.scale, terms.minimum) if number is not None)

    def weights(self, i: Expr, row: int) -> Iterator[Expr]:
        """The i-th group's registers of the weight rows from `row` on."""
        lanes = T.ramp(0, 1, 4 * self.dot.rows)
        part = row // self.dot.rows
        return (T.Bind(self.registers[i, part, at, lanes]) for at in range(REGISTERS))

    def terms_of(self, i: Expr, row: int, half: int) -> Terms:
        """Its scale and minimum; of a half of its columns where those have their own."""
        count = self.scheme.terms_count // self.scheme.halves
        lanes = T.ramp(row, 1, self.dot.rows)
        return Terms(*(self.terms[i, half * count + at, lanes] for at in range(count)))
