"""Weights that are laid out for int8 activations, read 16 bytes at a time, and the sums of one
group of 32 columns made of them.

A thread takes four neighbouring rows of a block: of each stored row of the group, 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme, Stored, Terms
from minicpm_mlc.ops.formats.weights.packing import QUADS, blocks_of
from minicpm_mlc.ops.formats.weights.values import REGISTERS
from minicpm_mlc.ops.gpu.group_terms import ACROSS, ROWS, GroupTerms, as_words
from minicpm_mlc.ops.gpu.intrinsics import dot
from minicpm_mlc.ops.gpu.kernel import registers
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.gpu.whole_numbers import WHOLE_BITS, from_whole
from minicpm_mlc.ops.int8_sums import start_of, sums_of
from minicpm_mlc.ops.quantize_rows import SCALE, SUM
from minicpm_mlc.ops.tir import Buffer, Expr, T

HELD = SUM + 1  # words of a row's group of activations


@dataclass(frozen=True)
class Activations:
    """One row's group: int32 words as quantize_rows writes them, read into registers."""

    words: Buffer

    @property
    def scale(self) -> Expr:
        """float32."""
        return T.reinterpret(self.words[SCALE], dtype="float32")

    @property
    def sum(self) -> Expr:
        """int32 word."""
        return self.words[SUM]


class Pairs:
    """x int32[m, k/32, 10] as pairs of words: pairs[row, i] are words 2 i and 2 i + 1 of a row."""

    def __init__(self, x: Buffer, m: Expr, traits: GpuTraits) -> None:
        """Made outside of workgroups."""
        self.words = T.decl_buffer((m, x.shape[1] * HELD), "int32", data=x.data)
        self.pairs = None
        if traits.vector_elements:  # TVM's C doesn't see that all ramps here are aligned
            pointer = T.Bind(T.reinterpret(x.data, dtype=T.handle("int32x2").ty))
            shape = m, x.shape[1] * (HELD // 2)
            self.pairs = T.decl_buffer(shape, "int32x2", data=pointer)

    def __getitem__(self, place: tuple[Expr, Expr]) -> Expr:
        row, pair = place
        return self.words[row, T.ramp(pair * 2, 1, 2)] if self.pairs is None else self.pairs[place]


def activations(x: Pairs, row: Expr, g: Expr) -> Activations:
    """Row `row`, group g of the pairs x."""
    words = registers(HELD, "int32")
    for i in range(HELD // 2):
        T.buffer_store(words, x[row, g * (HELD // 2) + i], [T.ramp(2 * i, 1, 2)])
    return Activations(words)


def held_activations(words: Buffer, g: Expr) -> Activations:
    """Group g of the only row of words in shared memory."""
    own = registers(HELD, "int32")
    for i in range(0, HELD, 2):
        T.buffer_store(own, words[0, g, T.ramp(i, 1, 2)], [T.ramp(i, 1, 2)])
    return Activations(own)


class Int8Matrix:
    """One weight matrix [n, k] in the layout rows16x4; made outside of workgroups."""

    def __init__(self, scheme: Scheme, stored: Stored, n: int, k: int) -> None:
        self.scheme, self.stored, self.values = scheme, stored, scheme.values
        self.blocks, self.groups = blocks_of(n), k // GROUP
        self.per_group = scheme.values.group_rows(QUADS)  # stored rows
        words = self.blocks, self.groups * self.per_group * LANES
        self.words = as_words(stored["weight"], words)
        self.terms = GroupTerms(scheme, stored, self.blocks, k)
        self.terms_of = self.terms.four

    def load(self, block: Expr, g: Expr, q: Expr) -> Buffer:
        """The words of rows 4 q .. 4 q + 3 of a block's group, by stored row, then row."""
        words = registers(ROWS * self.per_group, "uint32")
        for i in range(self.per_group):
            self._load_row(words, ROWS * i, block, g, q, i)
        return words

    def _load_row(self, to: Buffer, place: int, block: Expr, g: Expr, q: Expr, i: Expr) -> None:
        """The words of four rows in stored row i of a group."""
        at = T.Bind(((g * self.per_group + i) * ACROSS + q) * ROWS)
        T.buffer_store(to, self.words[block, T.ramp(at, 1, ROWS)], [T.ramp(place, 1, ROWS)])

    def quad_pairs(self, block: Expr, g: Expr, q: Expr, t: Expr) -> list[tuple[Expr, Expr]]:
        """The integers of columns 8 t .. 8 t + 3 and 8 t + 4 .. 8 t + 7 of rows 4 q .. 4 q + 3."""

        def read(i: Expr) -> list[Expr]:
            words = registers(ROWS, "uint32")
            self._load_row(words, 0, block, g, q, i)
            return [words[r] for r in range(ROWS)]

        return self.values.quad_pairs(read, t)

    def pairs_from(self, words: Buffer, start: Expr, t: Expr) -> list[tuple[Expr, Expr]]:
        """The same of stored rows that lie elsewhere, the first one from `start` on."""

        def read(i: Expr) -> list[Expr]:
            own = registers(ROWS, "uint32")
            at = T.Bind(start + i * LANES)
            T.buffer_store(own, words[T.ramp(at, 1, ROWS)], [T.ramp(0, 1, ROWS)])
            return [own[r] for r in range(ROWS)]

        return self.values.quad_pairs(read, t)

    def quads(self, words: Buffer, row: int) -> list[Expr]:
        """Eight uint32 of four integers each of one of the four rows."""
        return self.values.quads(lambda i: words[ROWS * i + row])

    def quads_of(self, block: Expr, g: Expr, lane: Expr) -> list[Expr]:
        """The same of any row of a block, read alone."""
        start = T.Bind(g * self.per_group * LANES + lane)
        return self.values.quads(lambda i: self.words[block, start + i * LANES])

    def product(self, quads: list[Expr], x: Activations, terms: list[Terms]) -> Expr:
        """float32: a row's group times the activations', without the activations' scale."""
        per = REGISTERS // self.scheme.halves
        parts = []
        for half, term in enumerate(terms):
            total = registers(1, "int32")
            start = start_of(self.scheme, self.values.zero, x.sum, half)
            T.buffer_store(total, start + WHOLE_BITS, [0])
            for i in range(half * per, (half + 1) * per):
                step = dot(self.values.unsigned, quads[i], x.words[i], total[0])
                T.buffer_store(total, step, [0])
            part = from_whole(total[0])
            part = part if term.scale is None else part * term.scale
            if term.minimum is not None:
                part = part + term.minimum * T.Cast("float32", self._sum(x, half))
            parts.append(part)
        return reduce(lambda a, b: a + b, parts)

    def _sum(self, x: Activations, half: int) -> Expr:
        """The sum of the activations that meet a minimum."""
        return sums_of(x.sum)[half] if self.scheme.halves > 1 else x.sum
