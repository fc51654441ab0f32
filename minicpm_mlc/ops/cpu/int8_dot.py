"""The processor's dot products of int8, and the sum of one group of 32 columns made of them.

A register holds `rows` weight rows of four consecutive columns; the same four activations meet
every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from minicpm_mlc.ops.cpu.vector import in_order
from minicpm_mlc.ops.formats.weights.base import Scheme, Stored
from minicpm_mlc.ops.formats.weights.values import REGISTERS, Values
from minicpm_mlc.ops.int8_sums import factor_of, start_of
from minicpm_mlc.ops.quantize_rows import SCALED
from minicpm_mlc.ops.tir import Expr, T

HELD = 4  # registers of weights that NEON unpacks in turn; more don't fit beside their sums
SATURATED = 1 << 15  # what a 16-bit sum must stay below


@dataclass(frozen=True)
class Activations:
    """One row's group, or half of it: word(i, n) is int32[n] from its i-th four values on, and
    int32[rows] that the integer product starts from.
    """

    word: Callable[[int, int], Expr]
    correction: Expr


@dataclass(frozen=True)
class Int8Dot:
    """`rows` weight rows per register; `tile` activation rows meet the weights, as each is then
    unpacked once for all of them.

    `sums`: registers of integer sums of a whole tile, which fit beside the weights of a word and an
    activation, and beside as many float totals unless these lie in memory (`beside_totals`). A
    tile's rows meet so many registers of weights that its sums fill them, as each activation is
    then loaded once for these.
    `registers`: of the processor. `signed`: whether both factors of a product are; else the first
    is unsigned. `query_levels`: the largest second factor that is exact beside any first one.
    """

    name: str
    rows: int
    tile: int
    sums: int
    registers: int
    signed: ClassVar[bool] = False
    query_levels: ClassVar[int] = 127

    def wide(self, rows: int, scheme: Scheme, tabled: bool) -> int:
        """Registers of weights that meet a tile of so many activation rows, from a table or
        unpacked on the way.
        """
        sums = self.sums if rows == self.tile and self.fills(scheme, tabled) else 0
        return max(1, (sums or self.beside_totals) // max(rows, scheme.values.held))

    def fills(self, scheme: Scheme, tabled: bool) -> bool:
        """Whether a whole tile's sums may take the registers that its float totals would have."""
        return scheme.halves == 1 and (tabled or scheme.values.held == 1)

    @property
    def beside_totals(self) -> int:
        """Registers of sums that leave as many for their float totals."""
        return self.registers // 4

    def zero(self, values: Values) -> int:
        """What the weights are too large by when they meet the activations."""
        return values.zero

    def factor(self, scheme: Scheme) -> int:
        """What quantize_rows multiplies the sum of a group's activations by, to be read where a
        scheme needs it: it starts the integer product, or meets the group's minimum.
        """
        return SCALED if scheme.has_minimum else factor_of(scheme, self.zero(scheme.values))

    def start(self, scheme: Scheme, word: Expr, half: int) -> Expr:
        """int32[rows] that the integer product starts from, given that word; of a half where those
        have their own scales. Scalar until it is there: vectors' ports are what products wait for.
        """
        return T.broadcast(start_of(scheme, self.zero(scheme.values), word, half), self.rows)

    def unpack(
        self, scheme: Scheme, stored: Stored, block: Expr, g: Expr, row: int
    ) -> Iterator[Expr]:
        """A group's eight registers of weights, from a row of the block on. Each is unpacked when
        it is asked for: all at once would not fit the registers beside the sums.
        """
        return scheme.values.registers(stored["weight"], block, g, 4 * row, 4 * self.rows)

    def arranged(self, registers: Iterator[Expr], _rows: int) -> Iterator[Expr]:
        """A group's registers as `groups` takes them beside so many activation rows."""
        return registers

    def groups(
        self,
        values: Values,
        weights: list[Iterator[Expr]],
        inputs: list[Activations],
        count: int,
    ) -> list[list[Expr]]:
        """Of each of some rows of `arranged` weights, of each activation row, int32[rows]: its
        correction + the sum of its products with the next `count` registers.

        Word by word: an activation that is loaded meets all weights, and every sum has its turn.
        """
        sums = [[x.correction for x in inputs] for _ in weights]
        words = [self.words(x) for x in inputs]
        for _ in range(count):
            for i, row, weight, word in _in_turn(weights, words):
                sums[i][row] = self.step(values, sums[i][row], weight, word)
        return sums

    def step(self, values: Values, total: Expr, weight: Expr, word: Expr) -> Expr:
        """total int32[rows] + the products of a register of weights and four activations."""
        raise NotImplementedError

    def words(self, x: Activations) -> Iterator[Expr]:
        """A group's activations, four in every row. Each is loaded when it is asked for."""
        return (T.Bind(self._splat(x.word(i, 1))) for i in range(REGISTERS))

    def multiply(self, total: Expr, first: Expr, second: Expr) -> Expr:
        """total int32[rows] + the products of two registers of 8-bit integers, four to a sum."""
        raise NotImplementedError

    def products(self) -> int:
        """Pairs that one `peak_step` multiplies and adds."""
        return 4 * self.rows

    def peak_step(self, total: Expr) -> Expr:
        """int32[rows] after one product of four pairs per row, which depends on `total`
        (ops/cpu/speed_limits.py).
        """
        raise NotImplementedError

    def _bytes(self, value: int) -> Expr:
        return T.broadcast(T.uint8(value), 4 * self.rows)

    def _type(self, bits: int, sign: str = "int") -> str:
        return f"{sign}{bits}x{32 // bits * self.rows}"

    def _splat(self, word: Expr) -> Expr:
        """Four activations, in every row."""
        return T.reinterpret(T.broadcast(word, self.rows), dtype=self._type(8))


class VpDpBusd(Int8Dot):
    """AVX-512 VNNI and AVX-VNNI: four unsigned times signed products, added to 32 bits."""

    def zero(self, values: Values) -> int:
        return values.zero if values.unsigned else values.zero + 128

    def unpack(
        self, scheme: Scheme, stored: Stored, block: Expr, g: Expr, row: Expr
    ) -> Iterator[Expr]:
        for weight in super().unpack(scheme, stored, block, g, row):
            if scheme.values.unsigned:
                yield weight
            else:
                yield T.Bind(T.reinterpret(weight, dtype=self._type(8, "uint")) ^ self._bytes(128))

    def step(self, values: Values, total: Expr, weight: Expr, word: Expr) -> Expr:
        return self.multiply(total, weight, word)

    def multiply(self, total: Expr, first: Expr, second: Expr) -> Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.rows}"
        total = _intrinsic(name, self._type(32), total, first, second)
        return total if self.rows == 16 else in_order(total)  # 16 registers have no room to spare

    def peak_step(self, total: Expr) -> Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.rows}"
        return _intrinsic(name, self._type(32), total, self._bytes(1), self._splat(3))


class PMAddUbsW(Int8Dot):
    """AVX2: pairs of unsigned times signed products, added to 16 bits with saturation, and pairs of
    those to 32.

    Small unsigned weights can't saturate, even summed over a group: 8 * 2 * 15 * 127 < 2**15; of
    larger ones fewer are summed. A pair never does, 2 * 127 * 127 < 2**15, nor do signed ones,
    which meet as |w| and sign(w) x.
    """

    query_levels = 64  # 2 * 64 * 255 < 2**15

    def fills(self, scheme: Scheme, tabled: bool) -> bool:
        """Sums of 16 bits that don't hold a whole group's need others beside them, and so do
        scales of two levels.
        """
        values = scheme.values
        whole = not values.unsigned or self.summed(values) >= REGISTERS
        return super().fills(scheme, tabled) and whole and (tabled or not scheme.leveled)

    def summed(self, values: Values) -> int:
        """Products that 16 bits hold the sum of, two of each pair."""
        return (SATURATED - 1) // (2 * values.largest * 127)

    def groups(
        self,
        values: Values,
        weights: list[Iterator[Expr]],
        inputs: list[Activations],
        count: int,
    ) -> list[list[Expr]]:
        """Unsigned weights are summed in 16 bits as far as these hold them."""
        if not values.unsigned:
            return super().groups(values, weights, inputs, count)
        summed = self.summed(values)
        sums = [[x.correction for x in inputs] for _ in weights]
        words = [self.words(x) for x in inputs]
        for start in range(0, count, summed):
            few = self._sixteens(weights, words, min(summed, count - start))
            for total, pairs in zip(sums, few, strict=True):
                total[:] = [t + self._quads(p) for t, p in zip(total, pairs, strict=True)]
        return sums

    def _sixteens(
        self, weights: list[Iterator[Expr]], words: list[Iterator[Expr]], count: int
    ) -> list[list[Expr]]:
        """`groups` of so few words that 16 bits hold the sums of pairs, int16[2 rows]."""
        sums: list[list[Expr]] = [[None] * len(words) for _ in weights]
        for _ in range(count):
            for i, row, weight, word in _in_turn(weights, words):
                pairs, before = self._pairs(weight, word), sums[i][row]
                sums[i][row] = pairs if before is None else in_order(before + pairs)
        return sums

    def step(self, values: Values, total: Expr, weight: Expr, word: Expr) -> Expr:
        """Of signed weights."""
        size = T.max(weight, T.broadcast(T.int8(0), 4 * self.rows) - weight)
        size = T.reinterpret(size, dtype=self._type(8, "uint"))
        x = _intrinsic("llvm.x86.avx2.psign.b", self._type(8), word, weight)
        return self.multiply(total, size, x)

    def multiply(self, total: Expr, first: Expr, second: Expr) -> Expr:
        return in_order(total + self._quads(self._pairs(first, second)))

    def peak_step(self, total: Expr) -> Expr:
        pairs = T.reinterpret(total, dtype=self._type(16))
        pairs = pairs + self._pairs(self._bytes(1), T.reinterpret(total, dtype=self._type(8)))
        return T.reinterpret(pairs, dtype=self._type(32))

    def _pairs(self, weight: Expr, x: Expr) -> Expr:
        return _intrinsic("llvm.x86.avx2.pmadd.ub.sw", self._type(16), weight, x)

    def _quads(self, pairs: Expr) -> Expr:
        return _intrinsic(
            "llvm.x86.avx2.pmadd.wd", self._type(32), pairs, T.broadcast(T.int16(1), 2 * self.rows)
        )


class SDot(Int8Dot):
    """Armv8.2 dotprod: four signed products, added to 32 bits."""

    signed = True

    def groups(
        self,
        values: Values,
        weights: list[Iterator[Expr]],
        inputs: list[Activations],
        count: int,
    ) -> list[list[Expr]]:
        """In order, so that neither other weights are unpacked nor scales multiplied before these
        sums are there.
        """
        sums = []
        for i in range(0, len(weights), HELD):
            some = super().groups(values, weights[i : i + HELD], inputs, count)
            sums += [[in_order(total) for total in each] for each in some]
        return sums

    def step(self, values: Values, total: Expr, weight: Expr, word: Expr) -> Expr:
        if values.unsigned:
            weight = T.reinterpret(weight, dtype=self._type(8))
        return self.multiply(total, weight, word)

    def multiply(self, total: Expr, first: Expr, second: Expr) -> Expr:
        return _intrinsic("llvm.aarch64.neon.sdot", self._type(32), total, first, second)

    def words(self, x: Activations) -> Iterator[Expr]:
        """By lane: the instruction takes one of a register's four words."""
        for i in range(REGISTERS):
            if i % 4 == 0:
                four = T.Bind(x.word(i, 4))
            word = T.Shuffle([four], [i % 4] * self.rows)
            yield T.Bind(T.reinterpret(word, dtype=self._type(8)))

    def peak_step(self, total: Expr) -> Expr:
        return _intrinsic(
            "llvm.aarch64.neon.sdot",
            self._type(32),
            total,
            T.broadcast(T.int8(1), 16),
            self._splat(3),
        )


class SmMlA(SDot):
    """Armv8.6 i8mm: two rows of eight times two rows of eight, a 2x2 matrix of sums. A row left
    alone goes by sdot.
    """

    def wide(self, rows: int, scheme: Scheme, tabled: bool) -> int:
        """Two rows alone meet no more weights than four do: these are held as octets too."""
        return super().wide(rows if rows == 1 else max(rows, 4), scheme, tabled)

    def fills(self, scheme: Scheme, tabled: bool) -> bool:
        """Octets that are made on the way need registers too."""
        return tabled and super().fills(scheme, tabled)

    def groups(
        self,
        values: Values,
        weights: list[Iterator[Expr]],
        inputs: list[Activations],
        count: int,
    ) -> list[list[Expr]]:
        pairs = list(zip(inputs[::2], inputs[1::2], strict=False))
        if not pairs:
            return super().groups(values, weights, inputs, count)
        # of two weight rows each: [row 0 x first, row 0 x second, row 1 x first, ...]
        starts = [_joined(a.correction, b.correction, [0, 4, 0, 4]) for a, b in pairs]
        sums = [[[start] * 2 for start in starts] for _ in weights]
        for i in range(0, count, 4):
            words = [self._by_octet(a.word(i, 4), b.word(i, 4)) for a, b in pairs]
            for octet in range(2):
                for matrices, each in zip(sums, weights, strict=True):
                    octets = next(each), next(each)
                    for at, both in enumerate(words):
                        matrices[at] = [
                            self.matrix(m, rows, both[octet])
                            for m, rows in zip(matrices[at], octets, strict=True)
                        ]
        return [[row for pair in matrices for row in self._by_row(*pair)] for matrices in sums]

    def _by_row(self, first: Expr, second: Expr) -> list[Expr]:
        """The sums of two activation rows, from those of two weight rows each."""
        lanes = ([0, 2, 4, 6], [1, 3, 5, 7])
        return [in_order(_joined(first, second, each)) for each in lanes]

    def products(self) -> int:
        return 8 * self.rows

    def peak_step(self, total: Expr) -> Expr:
        return self.matrix(total, T.broadcast(T.int8(1), 16), self._splat(3))

    def arranged(self, registers: Iterator[Expr], rows: int) -> Iterator[Expr]:
        """As octets, beside several rows."""
        if rows == 1:
            yield from registers
            return
        for first in registers:
            yield from self.octets(first, next(registers))

    def octets(self, low: Expr, high: Expr) -> list[Expr]:
        """Four rows' columns 0..3 and 4..7 as two rows' columns 0..7, twice."""
        low, high = (T.reinterpret(part, dtype="int32x4") for part in (low, high))
        return [
            T.Bind(T.reinterpret(_joined(low, high, lanes), dtype="uint8x16"))
            for lanes in ([0, 4, 1, 5], [2, 6, 3, 7])
        ]

    def _by_octet(self, first: Expr, second: Expr) -> list[Expr]:
        """int32[4] of two rows as two rows of eight, twice."""
        first, second = T.Bind(first), T.Bind(second)
        return [_joined(first, second, lanes) for lanes in ([0, 1, 4, 5], [2, 3, 6, 7])]

    def matrix(self, total: Expr, weights: Expr, x: Expr) -> Expr:
        """total int32[2 x 2] + the products of two rows of eight with two."""
        weights, x = (T.reinterpret(each, dtype="int8x16") for each in (weights, x))
        return _intrinsic("llvm.aarch64.neon.smmla", "int32x4", total, weights, x)


class PairDot(Int8Dot):
    """WebAssembly: pairs of signed 16-bit products, added to 32 bits."""

    signed = True

    def groups(
        self,
        values: Values,
        weights: list[Iterator[Expr]],
        inputs: list[Activations],
        count: int,
    ) -> list[list[Expr]]:
        """Rows 0 and 1 meet an activation as eight numbers, rows 2 and 3 too; a row's two pairs are
        added once all are summed.
        """
        none = T.broadcast(0, 4)
        sums = [[[none, none] for _ in inputs] for _ in weights]
        halves: list[Iterator[Expr]] = [map(self._halves, each) for each in weights]
        words: list[Iterator[Expr]] = [map(self._low, self.words(x)) for x in inputs]
        for _ in range(count):
            for i, row, both, word in _in_turn(halves, words):
                pairs = [self._dot(half, word) for half in both]
                sums[i][row] = [T.Bind(s + p) for s, p in zip(sums[i][row], pairs, strict=True)]
        return [
            [self._by_row(*s) + x.correction for s, x in zip(each, inputs, strict=True)]
            for each in sums
        ]

    def products(self) -> int:
        return 8

    def peak_step(self, total: Expr) -> Expr:
        pairs = T.reinterpret(total, dtype="int16x8")
        return T.Bind(total + self._dot(pairs, T.broadcast(T.int16(1), 8)))

    def multiply(self, total: Expr, first: Expr, second: Expr) -> Expr:
        both = zip(self._halves(first), self._halves(second), strict=True)
        return T.Bind(total + self._by_row(*(self._dot(a, b) for a, b in both)))

    def _low(self, register: Expr) -> Expr:
        """Of four activations in every row, those of two rows."""
        return self._halves(register)[0]

    def _halves(self, register: Expr) -> tuple[Expr, Expr]:
        """16 numbers of 8 bits as eight and eight of 16."""
        low, high = (T.Shuffle([register], list(range(at, at + 8))) for at in (0, 8))
        return T.Bind(T.Cast("int16x8", low)), T.Bind(T.Cast("int16x8", high))

    def _dot(self, weights: Expr, word: Expr) -> Expr:
        return _intrinsic("llvm.wasm.dot", "int32x4", weights, word)

    def _by_row(self, low: Expr, high: Expr) -> Expr:
        return _joined(low, high, [0, 2, 4, 6]) + _joined(low, high, [1, 3, 5, 7])


class RelaxedDot(PairDot):
    """WebAssembly's relaxed vectors: four products of signed numbers and of seven bits without a
    sign, added to 32 bits. Such weights are exact on every processor; others go in pairs.
    """

    def groups(
        self,
        values: Values,
        weights: list[Iterator[Expr]],
        inputs: list[Activations],
        count: int,
    ) -> list[list[Expr]]:
        if values.unsigned and values.largest < 128:
            return Int8Dot.groups(self, values, weights, inputs, count)
        return super().groups(values, weights, inputs, count)

    def step(self, values: Values, total: Expr, weight: Expr, word: Expr) -> Expr:
        return self._four(total, word, T.reinterpret(weight, dtype="int8x16"))

    def products(self) -> int:
        return 4 * self.rows

    def peak_step(self, total: Expr) -> Expr:
        return self._four(total, self._splat(3), T.broadcast(T.int8(1), 16))

    def _four(self, total: Expr, signed: Expr, seven_bits: Expr) -> Expr:
        name = "llvm.wasm.relaxed.dot.i8x16.i7x16.add.signed"
        return _intrinsic(name, "int32x4", signed, seven_bits, total)


def _joined(a: Expr, b: Expr, lanes: list[int]) -> Expr:
    """Lanes of a, then of b, by their number."""
    return T.Bind(T.Shuffle([a, b], lanes))


def _in_turn(
    weights: list[Iterator[Expr]], words: list[Iterator[Expr]]
) -> Iterator[tuple[int, int, Expr, Expr]]:
    """The next weights of each against the next activations of each: (which weights, which
    activations, the weights, the activations). What there is one of is held, the other passes.
    """
    if len(words) == 1:
        word = next(words[0])
        yield from ((i, 0, next(each), word) for i, each in enumerate(weights))
        return
    held = [next(each) for each in weights]
    for row, each in enumerate(words):
        word = next(each)
        yield from ((i, row, weight, word) for i, weight in enumerate(held))


def _intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    return T.Bind(T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype))


DOTS = {
    dot.name: dot
    for dot in (
        VpDpBusd("avx512vnni", rows=16, tile=8, sums=8, registers=32),
        VpDpBusd("avxvnni", rows=8, tile=4, sums=8, registers=16),
        PMAddUbsW("avx2", rows=8, tile=4, sums=8, registers=16),
        SDot("dotprod", rows=4, tile=4, sums=8, registers=32),
        SmMlA("i8mm", rows=4, tile=8, sums=16, registers=32),
        PairDot("simd128", rows=4, tile=4, sums=4, registers=16),
        RelaxedDot("relaxed-simd", rows=4, tile=4, sums=4, registers=16),
    )
}
