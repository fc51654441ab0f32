"""A lane's part in the product of 32 rows of int8 activations by pairs of blocks of W on tensor
cores: mma.m16n8k32, whose k is a group of 32 columns.

Two blocks of W are two tiles of 16 rows: lane 4 g + t reads columns 8 t .. 8 t + 7 of rows
4 (g % 4) .. + 3 of block g / 4, 16 bytes at a time; these are rows g and g + 8 of both tiles.
Columns of a group may come in any order that is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.base import Scheme, Terms
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.int8_matrix import HELD, ROWS, Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import accumulate, registers
from minicpm_mlc.ops.gpu.whole_numbers import WHOLE, WHOLE_BITS
from minicpm_mlc.ops.int8_sums import start_of
from minicpm_mlc.ops.tir import Buffer, Expr, T

TOKENS = 32  # rows of x that a warp takes at most, in tiles of 8
PAIRS = HELD // 2  # of words in a group of x; the last one is its scale and sum

Write = Callable[[Expr, Expr, Expr], None]  # (row of x, row of W, product)


@dataclass(frozen=True)
class Source:
    """Where a lane finds a group. `pair(row, i)`: words 2 i and 2 i + 1 of a row of x behind the
    lane's first; `quads(c)`: the integers of its four rows of the c-th pair of blocks, `terms(c)`
    theirs.
    """

    pair: Callable[[Expr, Expr], Expr]
    quads: Callable[[int], list[tuple[Expr, Expr]]]
    terms: Callable[[int], list[Terms]]


class Held:
    """A lane's registers for one group of columns: of x, words of its rows and (scale, sum) of the
    rows of its sums; of W, eight words and four rows' terms a pair of blocks.
    """

    def __init__(self, pairs: int, columns: int, scheme: Scheme) -> None:
        self.words, self.scales = registers(2 * columns, "int32"), registers(4 * columns, "int32")
        self.quads, self.factors = registers(8 * pairs, "uint32"), registers(4 * pairs)
        self.offsets = registers(4 * pairs)  # what the factors make of WHOLE
        self.minimums = registers(4 * pairs) if scheme.has_minimum else None

    def keep(self, i: int, terms: Terms) -> None:
        """The i-th row's."""
        T.buffer_store(self.factors, terms.scale, [i])
        T.buffer_store(self.offsets, self.factors[i] * constant(-WHOLE), [i])
        if self.minimums is not None:
            T.buffer_store(self.minimums, terms.minimum, [i])


class Lane:
    """One thread of a warp: its sums over the groups of columns so far, of `columns` tiles of 8
    rows of x from `first` and of `pairs` of blocks of W from `block` on.
    """

    def __init__(
        self,
        matrix: Int8Matrix,
        x: Pairs,
        m: Expr,
        pairs: int,
        first: Expr,
        block: Expr,
        thread: Expr,
        columns: int = TOKENS // 8,
    ) -> None:
        self.matrix, self.x, self.first, self.block, self.pairs = matrix, x, first, block, pairs
        self.columns = columns
        lane = T.Bind(thread % 32)
        self.g, self.t = T.Bind(lane // 4), T.Bind(lane % 4)
        self.q, self.last = T.Bind(self.g % ROWS), m - 1
        self.own = [T.Bind(block + 2 * c + self.g // ROWS) for c in range(pairs)]
        self.sums = registers(pairs * 2 * columns * 4, value=0.0)

    def places(self) -> list[tuple[int, Expr, Expr, Expr]]:
        """Of each sum: where it is, its row in the block, its row of x behind `first`, the
        block.
        """
        found = []
        for c, block in enumerate(self.own):
            for i in range(2 * self.columns * 4):
                half, n, part = i // (4 * self.columns), i // 4 % self.columns, i % 4
                row = T.Bind(ROWS * self.q + 2 * half + part // 2)
                column = T.Bind(8 * n + 2 * self.t + part % 2)
                found.append((c * 2 * self.columns * 4 + i, row, column, block))
        return found

    def groups(self, steps: int, number: Callable[[Expr], Expr]) -> None:
        """Add the groups of columns number(0 .. steps - 1); those behind the last add nothing. One
        is asked for while the one before it is multiplied.
        """
        one, other = (Held(self.pairs, self.columns, self.matrix.scheme) for _ in range(2))
        self._load(one, number(T.int32(0)))
        with T.serial(-(-steps // 2)) as turn:
            for held, loaded, ahead in ((one, other, 1), (other, one, 2)):
                self._load(loaded, number(turn * 2 + ahead))
                self.group(held)

    def _load(self, held: Held, number: Expr) -> None:
        """All that a group takes; zeros as scales of one behind the last."""
        matrix, g = self.matrix, T.Bind(T.min(number, self.matrix.groups - 1))
        blocks = [T.Bind(T.min(own, matrix.blocks - 1)) for own in self.own]
        source = Source(
            lambda row, i: self.x[T.Bind(T.min(self.first + row, self.last)), g * PAIRS + i],
            lambda c: matrix.quad_pairs(blocks[c], g, self.q, self.t),
            lambda c: [terms for (terms,) in matrix.terms_of(blocks[c], g, self.q)],
        )
        self.load(held, T.Bind(number < matrix.groups), source)

    def load(self, held: Held, there: Expr | None, source: Source) -> None:
        """A group; with zeros as scales unless it is `there`, which None always is."""
        for n in range(self.columns):
            pair = source.pair(T.Bind(8 * n + self.g), self.t)
            T.buffer_store(held.words, pair, [T.ramp(2 * n, 1, 2)])
            for o in range(2):
                at, pair = 4 * n + 2 * o, source.pair(T.Bind(8 * n + 2 * self.t + o), PAIRS - 1)
                T.buffer_store(held.scales, pair, [T.ramp(at, 1, 2)])
                if there is not None:
                    T.buffer_store(held.scales, T.Select(there, held.scales[at], 0), [at])
        for c in range(self.pairs):
            for i, quad in enumerate(source.quads(c)):
                for half in range(2):
                    T.buffer_store(held.quads, quad[half], [8 * c + 2 * i + half])
            for i, terms in enumerate(source.terms(c)):
                held.keep(4 * c + i, terms)

    def group(self, held: Held) -> None:
        """Multiply one group and add it."""
        starts = [self._start(held.scales, n) for n in range(self.columns)]
        for c in range(self.pairs):
            for half in range(2):
                quads = [held.quads[8 * c + 4 * half + i] for i in range(4)]
                for n, start in enumerate(starts):
                    total = self._multiply(quads, held.words, n, start)
                    at = ((c * 2 + half) * self.columns + n) * 4
                    self._add(at, total, held, 4 * c + 2 * half, n)

    def _start(self, scales: Buffer, n: int) -> Buffer:
        """What the integer products of 8 rows of x start from."""
        start, matrix = registers(4, "int32"), self.matrix
        for i in range(4):
            word = scales[4 * n + 2 * (i % 2) + 1]
            first = start_of(matrix.scheme, matrix.values.zero, word, 0)
            T.buffer_store(start, first + WHOLE_BITS, [i])
        return start

    def _multiply(self, quads: list[Expr], words: Buffer, n: int, start: Buffer) -> Buffer:
        """One tile: two of the lane's rows, 8 rows of x."""
        low, high, next_low, next_high = quads
        kind = "unsigned" if self.matrix.values.unsigned else "signed"
        total = registers(4, "int32")
        pointers = T.address_of(total[0]), T.address_of(start[0])
        operands = low, next_low, high, next_high, words[2 * n], words[2 * n + 1]
        tile("int32", f"multiply_bytes_{kind}", *pointers, *operands, effect=True)
        return total

    def _add(self, at: int, total: Buffer, held: Held, row: int, n: int) -> None:
        """A tile's integers to the sums from `at` on, of rows `row` and `row` + 1."""
        for i in range(4):
            own, word = row + i // 2, 4 * n + 2 * (i % 2)
            # the factor of WHOLE is exact: a float16 has 11 bits
            whole = T.reinterpret(total[i], dtype="float32")
            part = tile("float32", "fused", whole, held.factors[own], held.offsets[own])
            if held.minimums is not None:
                part = part + held.minimums[own] * T.Cast("float32", held.scales[word + 1])
            scale = T.reinterpret(held.scales[word], dtype="float32")
            accumulate(self.sums, at + i, part * scale)


def write_sums(lane: Lane, m: Expr, write: Write) -> None:
    """A lane's sums of the first m rows of x."""
    for at, row, column, block in lane.places():
        token = T.Bind(lane.first + column)
        with T.If(T.And(token < m, block < lane.matrix.blocks)), T.Then():
            write(token, T.Bind(block * LANES + row), lane.sums[at])
