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
from minicpm_mlc.ops.gpu.float16_bits import HalfBuffer
from minicpm_mlc.ops.gpu.intrinsics import dot, half_bits_to_float
from minicpm_mlc.ops.gpu.kernel import registers
from minicpm_mlc.ops.int8_sums import start_of, sums_of
from minicpm_mlc.ops.quantize_rows import SCALE, SUM
from minicpm_mlc.ops.tir import Buffer, Expr, T

ROWS = 4  # of a block, that a thread takes
HELD = SUM + 1  # words of a row's group of activations
ACROSS = LANES // ROWS  # threads that share a block's group


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


def in_pairs(x: Buffer, m: Expr) -> Buffer:
    """x int32[m, k/32, 10] as pairs of words, for `activations`; made outside of workgroups."""
    pointer = T.Bind(T.reinterpret(x.data, dtype=T.handle("int32x2").ty))
    return T.decl_buffer((m, x.shape[1] * (HELD // 2)), "int32x2", data=pointer)


def activations(x: Buffer, row: Expr, g: Expr) -> Activations:
    """Row `row`, group g of the pairs x."""
    words = registers(HELD, "int32")
    for i in range(HELD // 2):
        T.buffer_store(words, x[row, g * (HELD // 2) + i], [T.ramp(2 * i, 1, 2)])
    return Activations(words)


class Int8Matrix:
    """One weight matrix [n, k] in the layout rows16x4; made outside of workgroups."""

    def __init__(self, scheme: Scheme, stored: Stored, n: int, k: int) -> None:
        self.scheme, self.stored, self.values = scheme, stored, scheme.values
        self.blocks, self.groups = blocks_of(n), k // GROUP
        self.per_group = scheme.values.group_rows(QUADS)  # stored rows
        words = self.blocks, self.groups * self.per_group * LANES
        self.words = _as_words(stored["weight"], words)
        self.terms = {} if scheme.leveled else _terms_as_words(scheme, stored, self.blocks, k)

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

    def quads(self, words: Buffer, row: int) -> list[Expr]:
        """Eight uint32 of four integers each of one of the four rows."""
        return self.values.quads(lambda i: words[ROWS * i + row])

    def quads_of(self, block: Expr, g: Expr, lane: Expr) -> list[Expr]:
        """The same of any row of a block, read alone."""
        start = T.Bind(g * self.per_group * LANES + lane)
        return self.values.quads(lambda i: self.words[block, start + i * LANES])

    def terms_of(self, block: Expr, g: Expr, q: Expr) -> list[list[Terms]]:
        """Scale and minimum of each of the four rows, of the group or of both its halves."""
        if self.scheme.leveled:
            return [
                [
                    self.scheme.terms(self.stored, block, g, q * ROWS + r, half=half).bound()
                    for half in range(self.scheme.halves)
                ]
                for r in range(ROWS)
            ]
        halves = [self._four(block, self._group(g, half), q) for half in range(self.scheme.halves)]
        return [[half[r] for half in halves] for r in range(ROWS)]

    def _group(self, g: Expr, half: int) -> Expr:
        """The number of the group tensors' group."""
        halves = self.scheme.halves
        return g * halves + half if halves > 1 else g * GROUP // self.scheme.group

    def _four(self, block: Expr, group: Expr, q: Expr) -> list[Terms]:
        """The terms of four rows, of one load each."""
        four = {name: _four_halves(words, block, group, q) for name, words in self.terms.items()}
        return [Terms(*(four[name][r] for name in four)) for r in range(ROWS)]

    def product(self, quads: list[Expr], x: Activations, terms: list[Terms]) -> Expr:
        """float32: a row's group times the activations', without the activations' scale."""
        per = REGISTERS // self.scheme.halves
        parts = []
        for half, term in enumerate(terms):
            total = registers(1, "int32")
            start = start_of(self.scheme, self.values.zero, x.sum, half)
            T.buffer_store(total, start, [0])
            for i in range(half * per, (half + 1) * per):
                step = dot(self.values.unsigned, quads[i], x.words[i], total[0])
                T.buffer_store(total, step, [0])
            part = T.Cast("float32", total[0])
            part = part if term.scale is None else part * term.scale
            if term.minimum is not None:
                part = part + term.minimum * T.Cast("float32", self._sum(x, half))
            parts.append(part)
        return reduce(lambda a, b: a + b, parts)

    def _sum(self, x: Activations, half: int) -> Expr:
        """The sum of the activations that meet a minimum."""
        return sums_of(x.sum)[half] if self.scheme.halves > 1 else x.sum


def _as_words(buffer: Buffer, shape: tuple[int, int]) -> Buffer:
    data = buffer.bits.data if isinstance(buffer, HalfBuffer) else buffer.data
    pointer = T.Bind(T.reinterpret(data, dtype=T.handle("uint32").ty))
    return T.decl_buffer(shape, "uint32", data=pointer)


def _terms_as_words(scheme: Scheme, stored: Stored, blocks: int, k: int) -> dict[str, Buffer]:
    """float16 scales, and minimums, two to a word."""
    return {
        t.name: _as_words(stored[t.name], (blocks, t.width(k) * LANES // 2))
        for t in scheme.group_tensors
    }


def _four_halves(words: Buffer, block: Expr, group: Expr, q: Expr) -> list[Expr]:
    """float32 of four neighbouring rows' float16."""
    pair = registers(2, "uint32")
    at = T.Bind((group * ACROSS + q) * 2)
    T.buffer_store(pair, words[block, T.ramp(at, 1, 2)], [T.ramp(0, 1, 2)])
    return [
        half_bits_to_float(T.shift_right(pair[r // 2], T.uint32(16 * (r % 2)))) for r in range(4)
    ]
