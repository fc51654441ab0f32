"""Attention's products of float32: a scalar of the left matrix times a vector of the right one.

With bfloat16 pages a processor may multiply bfloat16: then queries and softmax weights are rounded
to it too, and a step takes two scalars and two vectors as pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import bf16_dot, vector
from minicpm_mlc.ops.cpu.attend_page import Arithmetic, Page, Products, Shape
from minicpm_mlc.ops.formats.kv import KEYS
from minicpm_mlc.ops.tir import Buffer, Expr, T

Load = Callable[
    [Expr, Expr, int], Expr
]  # (row, column, count) of the right matrix: numbers from there on, as stored


class Float32(Arithmetic):
    """Products of float32: the left matrix's numbers one by one."""

    together = 1  # numbers of a row that one step takes

    def products(self, shape: Shape, rows: int) -> Products:
        left = self.left(rows, shape.head_dim), self.left(shape.rows, PAGE_SIZE)
        return FloatProducts(shape, self, *left)

    def left(self, rows: int, depth: int) -> Buffer:
        """Scratch of the left matrix."""
        return T.alloc_buffer((rows, depth), "float32")

    def put_left(self, left: Buffer, x: Expr, row: Expr, at: Expr) -> None:
        """Store float32[16] as the left matrix's row from `at` on."""
        vector.store(left, x, row, at)

    def splat(self, left: Buffer, row: Expr, step: Expr) -> Expr:
        """What one row multiplies in a step."""
        return vector.splat(left[row, step])

    def right(self, load: Load, step: Expr, width: int, last: Expr) -> list[Expr]:
        """The vectors of the right matrix, `width` wide, in a step, of its rows up to `last`."""
        return [T.Bind(load(step, c, vector.LANES)) for c in range(0, width, vector.LANES)]

    def multiply_add(self, total: Expr, left: Expr, right: Expr) -> Expr:
        return total + left * right


class Bf16Pairs(Float32):
    """Products of bfloat16, two at once."""

    together = 2

    def left(self, rows: int, depth: int) -> Buffer:
        return T.alloc_buffer((rows, depth // 2), "int32")

    def put_left(self, left: Buffer, x: Expr, row: Expr, at: Expr) -> None:
        T.buffer_store(
            left,
            bf16_dot.pairs_of(bf16_dot.rounded(x)),
            [row, T.ramp(at // 2, 1, vector.LANES // 2)],
        )

    def splat(self, left: Buffer, row: Expr, step: Expr) -> Expr:
        return bf16_dot.in_every_pair(left[row, step])

    def right(self, load: Load, step: Expr, width: int, last: Expr) -> list[Expr]:
        """A pair that begins with the last row takes it twice: whatever lies behind is no number
        that 0 would hide.
        """
        pairs = []
        for c in range(0, width, 2 * vector.LANES):
            two = [
                T.Bind(load(row, c, 2 * vector.LANES))
                for row in (2 * step, T.min(2 * step + 1, last))
            ]
            pairs += bf16_dot.interleaved(*two)
        return pairs

    def multiply_add(self, total: Expr, left: Expr, right: Expr) -> Expr:
        return bf16_dot.dot(total, left, right)

    def functions(self) -> AbstractContextManager[None]:
        return bf16_dot.functions()


@dataclass(frozen=True)
class FloatProducts(Products):
    """`queries` [rows, d], scaled, and `weights` [tile rows, 64], as left matrices."""

    shape: Shape
    numbers: Float32
    queries: Buffer
    weights: Buffer

    def put_query(self, row: Expr, q: Buffer, token: Expr, head: Expr) -> None:
        scale = vector.splat(self.shape.query_scale)
        for j in range(0, self.shape.head_dim, vector.LANES):
            x = vector.load(q, token, head, j) * scale
            self.numbers.put_left(self.queries, x, row, j)

    def put_weights(self, row: Expr, token: int, x: Expr) -> None:
        self.numbers.put_left(self.weights, x, row, token)

    def score(self, scores: Buffer, first: Expr, page: Page) -> None:
        head_dim, width = self.shape.head_dim, self.shape.width
        with T.serial(PAGE_SIZE // width) as part:
            tile = tile_registers(self.shape)
            each_vector(self.shape, lambda r, c: vector.store(tile[r], vector.splat(0.0), c))
            self.multiply(
                tile,
                head_dim,
                self.queries,
                first,
                lambda i, c, n: page.keys(i, part * width + c, n),
                lambda i, n: page.fetch_values((part * head_dim + i) * width, n * width),
            )

            def finish(r: int, c: int) -> None:
                score = page.scaled(vector.load(tile[r], c), KEYS, part * width + c)
                vector.store(scores, score, r, part * width + c)

            each_vector(self.shape, finish)

    def add_values(
        self, output: Buffer, first: Expr, corrections: Buffer, tokens: Expr, page: Page
    ) -> None:
        width = self.shape.width
        with T.serial(self.shape.head_dim // width) as part:
            tile = tile_registers(self.shape)

            def start(r: int, c: int) -> None:
                rescaled = vector.load(output, first + r, part * width + c)
                vector.store(tile[r], rescaled * vector.splat(corrections[r]), c)

            def finish(r: int, c: int) -> None:
                vector.store(output, vector.load(tile[r], c), first + r, part * width + c)

            each_vector(self.shape, start)
            self.multiply(
                tile,
                tokens,
                self.weights,
                0,
                lambda t, c, n: page.values(t, part * width + c, n),
                lambda t, n: page.fetch_next_keys((part * PAGE_SIZE + t) * width, n * width),
            )
            each_vector(self.shape, finish)

    def multiply(
        self,
        tile: list[Buffer],
        depth: Expr,
        left: Buffer,
        first: Expr,
        right: Load,
        fetch: Callable[[Expr, int], None],
    ) -> None:
        """tile[r, c] += sum over k < depth of left[first + r, k] * right(k, c): scalars times
        vectors, all in registers.

        fetch(k, n) asks for what the products after this one's n read: the memory's latency would
        double the time of decode.
        """
        numbers = self.numbers
        with T.serial((depth + numbers.together - 1) // numbers.together) as step:
            fetch(step * numbers.together, numbers.together)
            columns = numbers.right(right, step, self.shape.width, depth - 1)
            for r, row in enumerate(tile):
                scalar = T.Bind(numbers.splat(left, first + r, step))
                for c, column in enumerate(columns):
                    at = c * vector.LANES
                    total = numbers.multiply_add(vector.load(row, at), scalar, column)
                    vector.store(row, total, at)


def tile_registers(shape: Shape) -> list[Buffer]:
    """A register tile: one buffer per row, each small enough for the stack."""
    return [vector.registers(shape.width // vector.LANES) for _ in range(shape.rows)]


def each_vector(shape: Shape, visit: Callable[[int, int], None]) -> None:
    """visit(row, column) for each vector of a register tile, unrolled."""
    for r in range(shape.rows):
        for c in range(0, shape.width, vector.LANES):
            visit(r, c)
