"""Attention's products of integers where an instruction multiplies two rows of eight numbers by two
columns of them.

The sums are those of ops/cpu/attend_integers.py: of integers, so that their order is no matter. Two
rows of a left matrix lie as one, eight numbers of each in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.ops.cpu.attend_integers import (
    STEPS,
    IntegerProducts,
    Integers,
    Load,
    scratch,
)
from minicpm_mlc.ops.cpu.attend_page import Products, Shape
from minicpm_mlc.ops.cpu.int8_dot import SmMlA
from minicpm_mlc.ops.cpu.round_integers import words_of
from minicpm_mlc.ops.tir import Buffer, Expr, T


@dataclass(frozen=True)
class PairedIntegers(Integers):
    """By matrices of two rows and two columns."""

    dot: SmMlA

    def products(self, shape: Shape, rows: int) -> Products:
        if shape.rows % 2:
            return super().products(shape, rows)
        return PairedProducts(shape, self.dot, *scratch(shape, rows, together=2))


@dataclass(frozen=True)
class PairedProducts(IntegerProducts):
    """Left matrices of half as many rows, which hold two each."""

    dot: SmMlA

    def put_words(self, words: Buffer, x: Expr, row: Expr, at: Expr) -> None:
        four = T.Bind(words_of(x))
        first = at // 2 + row % 2 * 2
        for half in (0, 2):
            two = T.Shuffle([four], [half, half + 1])
            T.buffer_store(words, two, [row // 2, T.ramp(first + 2 * half, 1, 2)])

    def multiply_tile(
        self,
        tile: list[Buffer],
        words: Expr,
        left: Buffer,
        first: Expr,
        right: Load,
        multiply: Callable[[Expr, Expr, Expr], Expr],
        fetch: Callable[[Expr], None],
    ) -> None:
        """As of single rows; `multiply` isn't asked, and the tile starts from 0."""
        lanes = range(0, self.shape.width, self.dot.rows)
        pairs = [[_matrices() for _ in lanes] for _ in range(self.shape.rows // 2)]
        with T.serial(words // STEPS) as step:
            fetch(step * STEPS)
            for i in range(0, STEPS, 2):
                word = T.Bind(step * STEPS + i)
                octets = [self.dot.octets(right(word, c), right(word + 1, c)) for c in lanes]
                for p, held in enumerate(pairs):
                    rows = left[first // 2 + p, T.ramp(2 * word, 1, 4)]
                    self._step(held, T.Bind(T.reinterpret(rows, dtype="int8x16")), octets)
        for p, held in enumerate(pairs):
            for lane, matrices in zip(lanes, held, strict=True):
                at = [T.ramp(lane, 1, self.dot.rows)]
                T.buffer_store(tile[2 * p], _joined(matrices, [0, 1, 4, 5]), at)
                T.buffer_store(tile[2 * p + 1], _joined(matrices, [2, 3, 6, 7]), at)

    def _step(self, held: list[list[Buffer]], rows: Expr, octets: list[list[Expr]]) -> None:
        """Add the products of two rows of eight with all columns."""
        at = T.ramp(0, 1, 4)
        for matrices, columns in zip(held, octets, strict=True):
            for matrix, two in zip(matrices, columns, strict=True):
                T.buffer_store(matrix, self.dot.matrix(matrix[at], rows, two), [at])


def _matrices() -> list[Buffer]:
    """Sums of two rows and four columns, two of which lie in a register with both rows."""
    made = [T.alloc_buffer((4,), "int32", scope="global") for _ in range(2)]
    for matrix in made:
        T.buffer_store(matrix, T.broadcast(0, 4), [T.ramp(0, 1, 4)])
    return made


def _joined(matrices: list[Buffer], lanes: list[int]) -> Expr:
    """Lanes of two matrices."""
    return T.Shuffle([T.Bind(matrix[T.ramp(0, 1, 4)]) for matrix in matrices], lanes)
