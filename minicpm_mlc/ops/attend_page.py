"""One page of keys and values against a block of query rows, softmax online (flash attention).

Rows are (token, query head) pairs that share one KV head. A block of rows keeps its queries, running maximum, running
sum and unnormalised output in scratch, and `attend_page` folds one page into them: any set of pages, in any order,
gives the attention over that set.

Inside a page, keys lie [head_dim, 64] and values [64, head_dim], so both products are the same register tile:
`rows` x `columns` vectors of 16 accumulators, a scalar of the left matrix times a vector of the right one.
Scores are kept in units of log2, so that the exponential is exp2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import e, log2, sqrt
from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.ops import kv_format, vector
from minicpm_mlc.ops.kv_format import KEYS, VALUES
from minicpm_mlc.ops.rope import PAGE_SIZE

CACHE_LINE = 64  # bytes
LOWEST = -3e38  # a running maximum before any key; finite, so that LOWEST - LOWEST is 0 and not NaN


@dataclass(frozen=True)
class Shape:
    """What an attention kernel is compiled for; `rows` x `columns` vectors is the register tile."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rows: int
    columns: int

    @staticmethod
    def of(num_heads: int, num_kv_heads: int, head_dim: int, tile_vectors: int, most_rows: int) -> Shape:
        """A tile of at most `tile_vectors` accumulators, as many of them rows as there is use for."""
        vector.vectors_in(head_dim, "head_dim")
        rows = min(8, most_rows, tile_vectors)
        columns = max(c for c in (1, 2, 4) if c * rows <= tile_vectors and head_dim % (c * vector.LANES) == 0)
        return Shape(num_heads, num_kv_heads, head_dim, rows, columns)

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def query_scale(self) -> float:
        """1 / sqrt(d), and the scores' change to log2."""
        return log2(e) / sqrt(self.head_dim)

    def tiles(self, rows: int) -> int:
        """Register tiles that cover `rows` rows."""
        return -(-rows // self.rows)


@dataclass(frozen=True)
class Block:
    """Scratch of one row block: what `attend_page` reads and folds a page into."""

    queries: Any  # f32[rows, d], scaled
    limits: Any  # i32[rows], the last slot that a row sees
    maxima: Any  # f32[rows]
    sums: Any  # f32[rows, 16], one partial sum per lane
    output: Any  # f32[rows, d], not yet divided by the sum
    weights: Any  # f32[tile rows, 64]: scores, then exp2(scores - maximum), of one tile and page

    @staticmethod
    def allocate(shape: Shape, rows: int) -> Block:
        """Scratch of whole tiles; the rows past the real ones repeat the last real one."""
        rows = shape.tiles(rows) * shape.rows
        return Block(
            T.alloc_buffer((rows, shape.head_dim), "float32"),
            T.alloc_buffer((rows,), "int32"),
            T.alloc_buffer((rows,), "float32"),
            T.alloc_buffer((rows, vector.LANES), "float32"),
            T.alloc_buffer((rows, shape.head_dim), "float32"),
            T.alloc_buffer((shape.rows, PAGE_SIZE), "float32"),
        )

    def load_row(self, shape: Shape, row: Any, q: Any, token: Any, head: Any, slot: Any) -> None:
        """Start row `row` with the query of (token, head) and nothing seen."""
        T.buffer_store(self.limits, slot, [row])
        T.buffer_store(self.maxima, T.float32(LOWEST), [row])
        vector.store(self.sums, vector.splat(0.0), row, 0)
        for j in range(0, shape.head_dim, vector.LANES):
            vector.store(self.queries, vector.load(q, token, head, j) * vector.splat(shape.query_scale), row, j)
            vector.store(self.output, vector.splat(0.0), row, j)

    def sum_of(self, row: Any) -> Any:
        """The softmax denominator of a row."""
        return vector.fold(lambda a, b: a + b, T.Bind(vector.load(self.sums, row, 0)))


def tile_registers(shape: Shape) -> list[Any]:
    """A register tile: one buffer per row, each small enough for the stack."""
    return [vector.registers(shape.columns) for _ in range(shape.rows)]


def each_vector(shape: Shape, visit: Callable[[int, int], None]) -> None:
    """visit(row, column) for each vector of a register tile, unrolled."""
    for r in range(shape.rows):
        for c in range(shape.columns):
            visit(r, c * vector.LANES)


def multiply_tile(
    shape: Shape,
    tile: list[Any],
    depth: Any,
    left: Callable[[int, Any], Any],
    right: Callable[[Any, int], Any],
    fetch: Callable[[Any], None],
) -> None:
    """tile[r, c] += sum over k < depth of left(r, k) * right(k, c): scalars times vectors, all in registers.

    fetch(k) asks for what the next product reads: the memory's latency would double the time of decode.
    """
    with T.serial(depth) as k:
        fetch(k)
        columns = [T.Bind(right(k, c * vector.LANES)) for c in range(shape.columns)]
        for r, row in enumerate(tile):
            scalar = T.Bind(vector.splat(left(r, k)))
            for c, column in enumerate(columns):
                vector.store(row, vector.load(row, c * vector.LANES) + scalar * column, c * vector.LANES)


@dataclass(frozen=True)
class Page:
    """One page of the pools, and the pool's page that is read after it, if that is known."""

    pools: tuple[Any, Any]
    place: Any
    kv_head: Any
    following: Any | None = None

    def key(self, i: Any, t: Any) -> Any:
        """Component i of 16 tokens from t on."""
        return kv_format.load(self.pools[0], self.place, self.kv_head, i, t)

    def value(self, t: Any, i: Any) -> Any:
        """16 components of token t from i on."""
        return kv_format.load(self.pools[1], self.place, self.kv_head, t, i)

    def scaled(self, x: Any, which: int, sixteen: Any) -> Any:
        """x times the scales of its 16 tokens' keys or values, in a format that has them."""
        if not kv_format.has_scales(self.pools):
            return x
        return x * kv_format.scales(self.pools, which, self.place, self.kv_head, sixteen)

    def fetch_values(self, at: Any, count: int) -> None:
        """Ask for elements at .. at + count - 1 of this page's values."""
        self._fetch(self.pools[1], self.place, at, count)

    def fetch_next_keys(self, at: Any, count: int) -> None:
        """Ask for elements at .. at + count - 1 of the following page's keys."""
        if self.following is not None:
            self._fetch(self.pools[0], self.following, at, count)

    def _fetch(self, pool: Any, place: Any, at: Any, count: int) -> None:
        line = CACHE_LINE // np.dtype(pool.dtype).itemsize
        for element in range(0, count, line):
            vector.prefetch(pool, place, self.kv_head, 0, at + element)


def score_tile(shape: Shape, block: Block, first: Any, page: Page) -> None:
    """weights = queries of the tile's rows times the page's keys."""
    width = shape.columns * vector.LANES
    with T.serial(PAGE_SIZE // width) as part:
        tile = tile_registers(shape)
        each_vector(shape, lambda r, c: vector.store(tile[r], vector.splat(0.0), c))
        multiply_tile(
            shape,
            tile,
            shape.head_dim,
            lambda r, i: block.queries[first + r, i],
            lambda i, c: page.key(i, part * width + c),
            lambda i: page.fetch_values((part * shape.head_dim + i) * width, width),
        )

        def finish(r: int, c: int) -> None:
            score = page.scaled(vector.load(tile[r], c), KEYS, part * shape.columns + c // vector.LANES)
            vector.store(block.weights, score, r, part * width + c)

        each_vector(shape, finish)


def hide_unseen(shape: Shape, block: Block, first: Any, page_slot: Any) -> None:
    """Scores of slots past a row's limit fall below LOWEST, and so to weight 0."""
    with T.serial(shape.rows) as r:
        visible = T.Bind(block.limits[first + r] - page_slot)
        for t in range(0, PAGE_SIZE, vector.LANES):
            seen = T.ramp(t, 1, vector.LANES) <= T.broadcast(visible, vector.LANES)
            score = T.Select(seen, vector.load(block.weights, r, t), vector.splat(T.min_value("float32")))
            vector.store(block.weights, score, r, t)


def weigh_tile(shape: Shape, block: Block, first: Any, corrections: Any, page: Page) -> None:
    """Scores become softmax weights against the new running maximum; corrections[r] rescales the old output.

    A value's scale goes into its weight, once its row's sum has it without.
    """
    with T.serial(shape.rows) as r:
        scores = [T.Bind(vector.load(block.weights, r, t)) for t in range(0, PAGE_SIZE, vector.LANES)]
        highest = T.max(T.max(scores[0], scores[1]), T.max(scores[2], scores[3]))
        old = T.Bind(block.maxima[first + r])
        new = T.Bind(T.max(old, vector.fold(T.max, T.Bind(highest))))
        correction = T.Bind(vector.exp2_below_1(vector.splat(old - new)))
        total = vector.load(block.sums, first + r, 0) * correction
        for part, score in enumerate(scores):
            weight = vector.exp2_below_1(score - vector.splat(new))
            vector.store(block.weights, page.scaled(weight, VALUES, part), r, part * vector.LANES)
            total = total + weight
        vector.store(block.sums, total, first + r, 0)
        vector.store(corrections, correction, r * vector.LANES)
        T.buffer_store(block.maxima, new, [first + r])


def add_values(shape: Shape, block: Block, first: Any, corrections: Any, tokens: Any, page: Page) -> None:
    """output = output * correction + weights times the page's first `tokens` values."""
    width = shape.columns * vector.LANES
    with T.serial(shape.head_dim // width) as part:
        tile = tile_registers(shape)

        def start(r: int, c: int) -> None:
            rescaled = vector.load(block.output, first + r, part * width + c)
            vector.store(tile[r], rescaled * vector.load(corrections, r * vector.LANES), c)

        def finish(r: int, c: int) -> None:
            vector.store(block.output, vector.load(tile[r], c), first + r, part * width + c)

        each_vector(shape, start)
        multiply_tile(
            shape,
            tile,
            tokens,
            lambda r, t: block.weights[r, t],
            lambda t, c: page.value(t, part * width + c),
            lambda t: page.fetch_next_keys((part * PAGE_SIZE + t) * width, width),
        )
        each_vector(shape, finish)


def attend_page(shape: Shape, block: Block, tiles: Any, page_slot: Any, page: Page) -> None:
    """Fold one page into the first `tiles` tiles of a block.

    page_slot: the sequence's slot at the page's start, which row limits are held against.
    """
    with T.serial(tiles) as t:
        first = T.Bind(t * shape.rows)
        limits = [block.limits[first + r] for r in range(shape.rows)]
        tokens = T.Bind(T.min(reduce(T.max, limits) - page_slot + 1, PAGE_SIZE))
        with T.If(tokens > 0), T.Then():
            corrections = T.alloc_buffer((shape.rows * vector.LANES,), "float32")
            score_tile(shape, block, first, page)
            with T.If(reduce(T.min, limits) < page_slot + PAGE_SIZE - 1), T.Then():
                hide_unseen(shape, block, first, page_slot)
            weigh_tile(shape, block, first, corrections, page)
            add_values(shape, block, first, corrections, tokens, page)
