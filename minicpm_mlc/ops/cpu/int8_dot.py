"""The processor's dot products of int8, and the sum of one group of 32 columns made of them.

A register holds `rows` weight rows of four consecutive columns; the same four activations meet
every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from minicpm_mlc.ops.formats.weights.base import Scheme, Stored
from minicpm_mlc.ops.formats.weights.values import Values
from minicpm_mlc.ops.int8_sums import factor_of, start_of
from minicpm_mlc.ops.tir import Expr, T

SATURATED = 1 << 15  # what a 16-bit sum must stay below


@dataclass(frozen=True)
class Activations:
    """One row's group, or half of it: word(i, n) is int32[n] from its i-th four values on, and what
    the integer product starts from.
    """

    word: Callable[[int, int], Expr]
    correction: Expr


@dataclass(frozen=True)
class Int8Dot:
    """`rows` weight rows per register; `tile` activation rows that leave room for the weights in
    the registers.

    `together` activation rows meet the weights at once. Up to `paired` rows meet two blocks of
    weights, where registers hold both, as each activation is then loaded once for the two.
    """

    name: str
    rows: int
    tile: int
    together: int = 1
    paired: int = 1

    def zero(self, values: Values) -> int:
        """What the weights are too large by when they meet the activations."""
        return values.zero

    def factor(self, scheme: Scheme) -> int:
        """What quantize_rows multiplies the sum of a group's activations by, to be read where a
        scheme needs it: it starts the integer product, or meets the group's minimum.
        """
        return factor_of(scheme, self.zero(scheme.values))

    def start(self, scheme: Scheme, word: Expr, half: int) -> Expr:
        """What the integer product starts from, given that word; of a half where those have their
        own scales.
        """
        return start_of(scheme, self.zero(scheme.values), word, half)

    def unpack(self, scheme: Scheme, stored: Stored, block: Expr, g: Expr, row: int) -> list[Expr]:
        """A group's eight registers of weights, from a row of the block on."""
        return scheme.values.registers(stored["weight"], block, g, 4 * row, 4 * self.rows)

    def groups(
        self, values: Values, blocks: list[list[Expr]], inputs: list[Activations]
    ) -> list[list[Expr]]:
        """Of each block of weights, of each activation row, int32[rows]: its correction + the sum
        of all products.
        """
        return [
            [
                self.group(
                    values, weights, [x.word(i, 1) for i in range(len(weights))], x.correction
                )
                for x in inputs
            ]
            for weights in blocks
        ]

    def group(
        self, values: Values, weights: list[Expr], words: list[Expr], correction: Expr
    ) -> Expr:
        """`groups` of one block and one row."""
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

    def unpack(self, scheme: Scheme, stored: Stored, block: Expr, g: Expr, row: int) -> list[Expr]:
        weights = super().unpack(scheme, stored, block, g, row)
        if scheme.values.unsigned:
            return weights
        return [
            T.Bind(T.reinterpret(w, dtype=self._type(8, "uint")) ^ self._bytes(128))
            for w in weights
        ]

    def groups(
        self, values: Values, blocks: list[list[Expr]], inputs: list[Activations]
    ) -> list[list[Expr]]:
        """Sums take turns, as a product waits for the one before it of its own sum."""
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.rows}"
        totals = [[T.broadcast(x.correction, self.rows) for x in inputs] for _ in blocks]
        for i in range(len(blocks[0])):
            for row, x in enumerate(inputs):
                word = T.Bind(self._splat(x.word(i, 1)))
                for sums, weights in zip(totals, blocks, strict=True):
                    sums[row] = _intrinsic(name, self._type(32), sums[row], weights[i], word)
        return totals

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

    def group(
        self, values: Values, weights: list[Expr], words: list[Expr], correction: Expr
    ) -> Expr:
        total = T.broadcast(correction, self.rows)
        if not values.unsigned:
            return reduce(lambda a, b: a + b, map(self._signed, weights, words), total)
        pairs = [self._pairs(w, self._splat(x)) for w, x in zip(weights, words, strict=True)]
        summed = (SATURATED - 1) // (2 * values.largest * 127)
        for start in range(0, len(pairs), summed):
            few = reduce(lambda a, b: a + b, pairs[start : start + summed])
            total = total + self._quads(few)
        return total

    def peak_step(self, total: Expr) -> Expr:
        pairs = T.reinterpret(total, dtype=self._type(16))
        pairs = pairs + self._pairs(self._bytes(1), T.reinterpret(total, dtype=self._type(8)))
        return T.reinterpret(pairs, dtype=self._type(32))

    def _signed(self, weight: Expr, word: Expr) -> Expr:
        size = T.reinterpret(
            T.max(weight, T.broadcast(T.int8(0), 4 * self.rows) - weight),
            dtype=self._type(8, "uint"),
        )
        x = _intrinsic("llvm.x86.avx2.psign.b", self._type(8), self._splat(word), weight)
        return self._quads(self._pairs(size, x))

    def _pairs(self, weight: Expr, x: Expr) -> Expr:
        return _intrinsic("llvm.x86.avx2.pmadd.ub.sw", self._type(16), weight, x)

    def _quads(self, pairs: Expr) -> Expr:
        return _intrinsic(
            "llvm.x86.avx2.pmadd.wd", self._type(32), pairs, T.broadcast(T.int16(1), 2 * self.rows)
        )


class SDot(Int8Dot):
    """Armv8.2 dotprod: four signed products, added to 32 bits."""

    def group(
        self, values: Values, weights: list[Expr], words: list[Expr], correction: Expr
    ) -> Expr:
        total = T.broadcast(correction, self.rows)
        for weight, word in zip(weights, words, strict=True):
            if values.unsigned:
                weight = T.reinterpret(weight, dtype=self._type(8))
            total = _intrinsic(
                "llvm.aarch64.neon.sdot", self._type(32), total, weight, self._splat(word)
            )
        return total

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

    def groups(
        self, values: Values, blocks: list[list[Expr]], inputs: list[Activations]
    ) -> list[list[Expr]]:
        if len(inputs) < self.together:
            return super().groups(values, blocks, inputs)
        first, second = inputs
        words = [
            _joined(first.word(i, 2), second.word(i, 2), [0, 1, 2, 3])
            for i in range(0, len(blocks[0]), 2)
        ]
        pairs = [T.Bind(T.reinterpret(word, dtype="int8x16")) for word in words]
        return [self._matrices(weights, pairs, inputs) for weights in blocks]

    def _matrices(
        self, weights: list[Expr], pairs: list[Expr], inputs: list[Activations]
    ) -> list[Expr]:
        """Of one block, of both rows."""
        sums = [
            T.broadcast(0, self.rows)
        ] * 2  # of two weight rows each: [row 0 x first, row 0 x second, row 1 x first, ...]
        for i, x in enumerate(pairs):
            octets = self._octets(*weights[2 * i : 2 * i + 2])
            sums = [
                self._matrix(total, octet, x) for total, octet in zip(sums, octets, strict=True)
            ]
        columns = [_joined(sums[0], sums[1], lanes) for lanes in ([0, 2, 4, 6], [1, 3, 5, 7])]
        return [
            T.Bind(total + T.broadcast(x.correction, 4))
            for total, x in zip(columns, inputs, strict=True)
        ]

    def products(self) -> int:
        return 8 * self.rows

    def peak_step(self, total: Expr) -> Expr:
        return self._matrix(total, T.broadcast(T.int8(1), 16), self._splat(3))

    def _octets(self, low: Expr, high: Expr) -> list[Expr]:
        """Four rows' columns 0..3 and 4..7 as two rows' columns 0..7, twice."""
        low, high = (T.reinterpret(part, dtype="int32x4") for part in (low, high))
        return [
            T.Bind(T.reinterpret(_joined(low, high, lanes), dtype="int8x16"))
            for lanes in ([0, 4, 1, 5], [2, 6, 3, 7])
        ]

    def _matrix(self, total: Expr, weights: Expr, x: Expr) -> Expr:
        return _intrinsic("llvm.aarch64.neon.smmla", "int32x4", total, weights, x)


def _joined(a: Expr, b: Expr, lanes: list[int]) -> Expr:
    """Lanes of a, then of b, by their number."""
    return T.Bind(T.Shuffle([a, b], lanes))


def _intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    return T.Bind(T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype))


DOTS = {
    dot.name: dot
    for dot in (
        VpDpBusd("avx512vnni", rows=16, tile=4, paired=4),
        VpDpBusd("avxvnni", rows=8, tile=4),
        PMAddUbsW("avx2", rows=8, tile=4),
        SDot("dotprod", rows=4, tile=4),
        SmMlA("i8mm", rows=4, tile=4, together=2),
    )
}
