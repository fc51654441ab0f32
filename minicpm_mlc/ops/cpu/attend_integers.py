"""Attention's products of integers: int8 keys and values as they are stored, four at once.

Queries are rounded by row and head, the softmax weights of a page by row, once each is multiplied
by its value's scale. What the integers stand for is ops/formats/kv/int8_words.py's definition. An
instruction that takes one factor unsigned is given keys with 128 added, which the sums start
without; weights are never negative. The first of a block's tiles asks for the following page: what
is asked for while products run arrives while the softmax does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.attend_page import Arithmetic, Page, Products, Shape
from minicpm_mlc.ops.cpu.int8_dot import Activations, Int8Dot
from minicpm_mlc.ops.cpu.round_integers import ADDED, round_row, start_of, words_of
from minicpm_mlc.ops.formats.kv import KEYS
from minicpm_mlc.ops.formats.kv.int8 import LARGEST, SMALLEST
from minicpm_mlc.ops.tir import Buffer, Expr, T

STEPS = 4  # words of four numbers that a loop takes in turn
NOTHING = 1e-38  # rounds to 0 as 0 does, which takes an instruction more to compare
Load = Callable[[Expr, int], Expr]  # (word, lane) of the right matrix: a register from there on


@dataclass(frozen=True)
class Integers(Arithmetic):
    """By a processor's dot product."""

    dot: Int8Dot

    def tile(self, head_dim: int, most_rows: int) -> tuple[int, int]:
        """(rows, width) of a tile whose sums fill half of the registers."""
        sums, lanes = self.dot.registers // 2, self.dot.rows
        rows = min(sums // 2, most_rows)
        fitting = (c * lanes for c in (1, 2, 4) if c * rows <= sums)
        return rows, max(w for w in fitting if head_dim % w == 0)

    def products(self, shape: Shape, rows: int) -> Products:
        return IntegerProducts(shape, self.dot, *scratch(shape, rows))


def scratch(shape: Shape, rows: int, together: int = 1) -> list[Buffer]:
    """Of IntegerProducts for a block of so many rows, as many of which as lie `together` sharing a
    row of the left matrices.
    """
    return [
        T.alloc_buffer((rows // together, together * shape.head_dim // 4), "int32"),
        T.alloc_buffer((shape.rows // together, together * PAGE_SIZE // 4), "int32"),
        T.alloc_buffer((rows,), "float32"),
        T.alloc_buffer((shape.rows,), "float32"),
        T.alloc_buffer((rows,), "int32"),
        T.alloc_buffer((shape.rows, PAGE_SIZE), "float32"),
    ]


@dataclass(frozen=True)
class IntegerProducts(Products):
    """Left matrices: four integers a word, and each row's scale."""

    shape: Shape
    dot: Int8Dot
    queries: Buffer  # i32[rows, d / 4]
    weights: Buffer  # i32[tile rows, 16]
    query_scales: Buffer  # f32[rows], of scores in units of log2
    weight_scales: Buffer  # f32[tile rows]
    starts: Buffer  # i32[rows], what the sums of scores start from
    unrounded: Buffer  # f32[tile rows, 64]

    def put_query(self, row: Expr, q: Buffer, token: Expr, head: Expr) -> None:
        def read(at: Expr) -> Expr:
            return vector.load(q, token, head, at)

        def write(x: Expr, at: Expr) -> None:
            self.put_words(self.queries, x, row, at)

        levels, vectors = self.dot.query_levels, self.shape.head_dim // vector.LANES
        largest, total = round_row(vectors, levels, read, write)
        scale = T.float32(self.shape.query_scale / levels)
        T.buffer_store(self.query_scales, largest * scale, [row])
        if not self.dot.signed:
            T.buffer_store(self.starts, start_of(total), [row])

    def put_weights(self, row: Expr, token: int, x: Expr) -> None:
        """A slot that holds no token has any scale, NaN too; its weight is 0."""
        vector.store(self.unrounded, T.max(x, vector.splat(NOTHING)), row, token)

    def put_words(self, words: Buffer, x: Expr, row: Expr, at: Expr) -> None:
        """Store float32[16], truncated to int8, as four words of a left matrix's row from number
        `at` on.
        """
        T.buffer_store(words, words_of(x), [row, T.ramp(at // 4, 1, 4)])

    def _round_weights(self, row: Expr) -> None:
        """Of a row of the tile, whose weights are all there."""
        tokens = range(0, PAGE_SIZE, vector.LANES)
        weights = [T.Bind(vector.load(self.unrounded, row, t)) for t in tokens]
        highest = T.max(T.max(weights[0], weights[1]), T.max(weights[2], weights[3]))
        largest = T.Bind(T.max(vector.fold(T.max, T.Bind(highest)), T.float32(SMALLEST)))
        inverse = T.Bind(vector.splat(T.float32(LARGEST) / largest))
        for token, weight in zip(tokens, weights, strict=True):
            self.put_words(self.weights, weight * inverse + vector.splat(0.5), row, token)
        T.buffer_store(self.weight_scales, largest * T.float32(1 / LARGEST), [row])

    def score(self, scores: Buffer, first: Expr, page: Page) -> None:
        head_dim, width, lanes = self.shape.head_dim, self.shape.width, self.dot.rows
        with T.If(first == 0), T.Then():  # its scales, which lie behind the keys
            page.fetch_next_keys(head_dim * PAGE_SIZE, page.kv.scale_rows * PAGE_SIZE)
        with T.serial(PAGE_SIZE // width) as part:

            def start(r: int) -> Expr:
                return T.int32(0) if self.dot.signed else self.starts[first + r]

            def keys(word: Expr, lane: int) -> Expr:
                return self._unsigned(page.key_words(4 * word, part * width + lane, lanes))

            def fetch(word: Expr) -> None:
                with T.If(first == 0), T.Then():
                    at = (part * head_dim + 4 * word) * width
                    page.fetch_next_keys(at, 4 * STEPS * width)

            tile = self._tile(start)
            self.multiply_tile(
                tile, head_dim // 4, self.queries, first, keys, self._by_query, fetch
            )
            for r, row in enumerate(tile):
                scale = T.Bind(T.broadcast(self.query_scales[first + r], lanes))
                for lane in range(0, width, lanes):
                    token = part * width + lane
                    score = T.Cast(f"float32x{lanes}", row[T.ramp(lane, 1, lanes)]) * scale
                    score = page.scaled(score, KEYS, token, lanes)
                    T.buffer_store(scores, score, [r, T.ramp(token, 1, lanes)])

    def add_values(
        self, output: Buffer, first: Expr, corrections: Buffer, tokens: Expr, page: Page
    ) -> None:
        """Weights of tokens past the last one are 0, whatever their values."""
        width, lanes = self.shape.width, self.dot.rows
        words = T.Bind((tokens + 4 * STEPS - 1) // (4 * STEPS) * STEPS)
        with T.serial(self.shape.rows) as row:
            self._round_weights(row)
        with T.serial(self.shape.head_dim // width) as part:

            def values(word: Expr, lane: int) -> Expr:
                return page.value_words(4 * word, part * width + lane, lanes)

            def fetch(word: Expr) -> None:
                with T.If(first == 0), T.Then():
                    at = (part * PAGE_SIZE + 4 * word) * width
                    page.fetch_next_values(at, 4 * STEPS * width)

            tile = self._tile(lambda _: T.int32(0))
            self.multiply_tile(tile, words, self.weights, 0, values, self._by_weight, fetch)
            for r, row in enumerate(tile):
                before, scale = (
                    T.Bind(T.broadcast(factors[r], lanes))
                    for factors in (corrections, self.weight_scales)
                )
                for lane in range(0, width, lanes):
                    at = [first + r, T.ramp(part * width + lane, 1, lanes)]
                    added = T.Cast(f"float32x{lanes}", row[T.ramp(lane, 1, lanes)]) * scale
                    T.buffer_store(output, output[tuple(at)] * before + added, at)

    def _tile(self, start: Callable[[int], Expr]) -> list[Buffer]:
        """Sums in registers, a buffer for each row."""
        shape, lanes = self.shape, self.dot.rows
        tile = [T.alloc_buffer((shape.width,), "int32", scope="global") for _ in range(shape.rows)]
        for r, row in enumerate(tile):
            for lane in range(0, shape.width, lanes):
                T.buffer_store(row, T.broadcast(start(r), lanes), [T.ramp(lane, 1, lanes)])
        return tile

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
        """tile[r, c] += sum over the words, a multiple of 4, of left[first + r, word] times
        right(word, c).
        """
        lanes = range(0, self.shape.width, self.dot.rows)
        with T.serial(words // STEPS) as step:
            fetch(step * STEPS)
            rows = [self._words(left, first + r, step * STEPS) for r in range(len(tile))]
            for i in range(STEPS):
                columns = [T.Bind(right(step * STEPS + i, lane)) for lane in lanes]
                for row, splats in zip(tile, rows, strict=True):
                    word = next(splats)
                    for lane, column in zip(lanes, columns, strict=True):
                        at = T.ramp(lane, 1, self.dot.rows)
                        T.buffer_store(row, multiply(row[at], word, column), [at])

    def _words(self, left: Buffer, row: Expr, first: Expr) -> Iterator[Expr]:
        """A row's words from the first on, each everywhere in a register."""

        def word(i: int, n: int) -> Expr:
            return left[row, T.ramp(first + i, 1, n) if n > 1 else first + i]

        return self.dot.words(Activations(word, T.int32(0)))

    def _by_query(self, total: Expr, query: Expr, keys: Expr) -> Expr:
        return self.dot.multiply(total, keys, query)

    def _by_weight(self, total: Expr, weight: Expr, values: Expr) -> Expr:
        return self.dot.multiply(total, weight, values)

    def _unsigned(self, keys: Expr) -> Expr:
        if self.dot.signed:
            return keys
        bytes_ = T.reinterpret(keys, dtype=f"uint8x{4 * self.dot.rows}")
        return bytes_ ^ T.broadcast(T.uint8(ADDED), 4 * self.dot.rows)
