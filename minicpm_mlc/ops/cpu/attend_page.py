"""One page of keys and values against a block of query rows, softmax online (flash attention).

Rows are (token, query head) pairs that share one KV head. A block of rows keeps its queries,
running maximum, running sum and unnormalised output in scratch, and `attend_page` folds one page
into them: any set of pages, in any order, gives the attention over that set.

Inside a page, keys lie [head_dim, 64] and values [64, head_dim], so both products are the same
register tile: `rows` x `columns` vectors of 16 accumulators, a scalar of the left matrix times a
vector of the right one. With bfloat16 pages a processor may multiply bfloat16: then queries and
softmax weights are rounded to it too, and a step takes two scalars and two vectors as pairs.
Scores are kept in units of log2, so that the exponential is exp2.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from math import e, log2, sqrt

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.attend import Attention
from minicpm_mlc.ops.cpu import bf16_dot, vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.kv import KEYS, VALUES, KVFormat
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

CACHE_LINE = 64  # bytes


class Float32:
    """Products of float32: the left matrix's numbers one by one."""

    together = 1  # numbers of a row that one step takes

    def left(self, rows: int, depth: int) -> Buffer:
        """Scratch of the left matrix."""
        return T.alloc_buffer((rows, depth), "float32")

    def put_left(self, left: Buffer, x: Expr, row: Expr, at: Expr) -> None:
        """Store float32[16] as the left matrix's row from `at` on."""
        vector.store(left, x, row, at)

    def splat(self, left: Buffer, row: Expr, step: Expr) -> Expr:
        """What one row multiplies in a step."""
        return vector.splat(left[row, step])

    def right(self, load: Load, step: Expr, columns: int, last: Expr) -> list[Expr]:
        """What `columns` vectors of the right matrix hold in a step, of its rows up to `last`."""
        return [T.Bind(load(step, c * vector.LANES, vector.LANES)) for c in range(columns)]

    def multiply_add(self, total: Expr, left: Expr, right: Expr) -> Expr:
        return total + left * right

    def functions(self) -> AbstractContextManager[None]:
        """Around a kernel's body: what its instructions need."""
        return nullcontext()


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

    def right(self, load: Load, step: Expr, columns: int, last: Expr) -> list[Expr]:
        """A pair that begins with the last row takes it twice: whatever lies behind is no number
        that 0 would hide.
        """
        pairs = []
        for c in range(0, columns * vector.LANES, 2 * vector.LANES):
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


Load = Callable[
    [Expr, Expr, int], Expr
]  # (row, column, count) of the right matrix: numbers from there on, as stored


@dataclass(frozen=True)
class Shape:
    """What an attention kernel is compiled for; `rows` x `columns` vectors is the register tile."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rows: int
    columns: int
    arithmetic: Float32

    @staticmethod
    def of(operator: Attention, traits: CpuTraits, most_rows: int) -> Shape:
        """A tile of as many accumulators as the registers hold beside their operands (8 hide the
        latency of AVX-512, 4 are what AVX2 and NEON hold), as many of them rows as there is use
        for.

        A processor with dot products of bfloat16 multiplies pages of it as they are, where the tile
        is two vectors wide or more.
        """
        head_dim, vectors = operator.head_dim, traits.attention_vectors(most_rows)
        vector.vectors_in(head_dim, "head_dim")
        rows = min(8, most_rows, vectors)
        columns = max(
            c for c in (1, 2, 4) if c * rows <= vectors and head_dim % (c * vector.LANES) == 0
        )
        paired = operator.kv.multiplied_as_bfloat16(traits.bf16_dot) and columns > 1
        heads = operator.num_heads, operator.num_kv_heads, head_dim
        return Shape(*heads, rows, columns, Bf16Pairs() if paired else Float32())

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

    queries: Buffer  # [rows, d], scaled, as the left matrix of a product
    limits: Buffer  # i32[rows], the last slot that a row sees
    maxima: Buffer  # f32[rows]
    sums: Buffer  # f32[rows, 16], one partial sum per lane
    output: Buffer  # f32[rows, d], not yet divided by the sum
    scores: Buffer  # f32[tile rows, 64] of one tile and page
    weights: Buffer  # [tile rows, 64]: exp2(scores - maximum), as the left matrix of a product

    @staticmethod
    def allocate(shape: Shape, rows: int) -> Block:
        """Scratch of whole tiles; the rows past the real ones repeat the last real one."""
        rows = shape.tiles(rows) * shape.rows
        return Block(
            shape.arithmetic.left(rows, shape.head_dim),
            T.alloc_buffer((rows,), "int32"),
            T.alloc_buffer((rows,), "float32"),
            T.alloc_buffer((rows, vector.LANES), "float32"),
            T.alloc_buffer((rows, shape.head_dim), "float32"),
            T.alloc_buffer((shape.rows, PAGE_SIZE), "float32"),
            shape.arithmetic.left(shape.rows, PAGE_SIZE),
        )

    def load_row(
        self, shape: Shape, row: Expr, q: Buffer, token: Expr, head: Expr, slot: Expr
    ) -> None:
        """Start row `row` with the query of (token, head) and nothing seen."""
        T.buffer_store(self.limits, slot, [row])
        T.buffer_store(self.maxima, T.float32(LOWEST), [row])
        vector.store(self.sums, vector.splat(0.0), row, 0)
        for j in range(0, shape.head_dim, vector.LANES):
            shape.arithmetic.put_left(
                self.queries,
                vector.load(q, token, head, j) * vector.splat(shape.query_scale),
                row,
                j,
            )
            vector.store(self.output, vector.splat(0.0), row, j)

    def sum_of(self, row: Expr) -> Expr:
        """The softmax denominator of a row."""
        return vector.fold(lambda a, b: a + b, T.Bind(vector.load(self.sums, row, 0)))


def tile_registers(shape: Shape) -> list[Buffer]:
    """A register tile: one buffer per row, each small enough for the stack."""
    return [vector.registers(shape.columns) for _ in range(shape.rows)]


def each_vector(shape: Shape, visit: Callable[[int, int], None]) -> None:
    """visit(row, column) for each vector of a register tile, unrolled."""
    for r in range(shape.rows):
        for c in range(shape.columns):
            visit(r, c * vector.LANES)


def multiply_tile(
    shape: Shape,
    tile: list[Buffer],
    depth: Expr,
    left: Expr,
    first: Expr,
    right: Load,
    fetch: Callable[[Expr, int], None],
) -> None:
    """tile[r, c] += sum over k < depth of left[first + r, k] * right(k, c): scalars times vectors,
    all in registers.

    fetch(k, n) asks for what the products after this one's n read: the memory's latency would
    double the time of decode.
    """
    arithmetic = shape.arithmetic
    with T.serial((depth + arithmetic.together - 1) // arithmetic.together) as step:
        fetch(step * arithmetic.together, arithmetic.together)
        columns = arithmetic.right(right, step, shape.columns, depth - 1)
        for r, row in enumerate(tile):
            scalar = T.Bind(arithmetic.splat(left, first + r, step))
            for c, column in enumerate(columns):
                total = arithmetic.multiply_add(vector.load(row, c * vector.LANES), scalar, column)
                vector.store(row, total, c * vector.LANES)


@dataclass(frozen=True)
class Page:
    """One page of the pools, and the pool's page that is read after it, if that is known."""

    kv: KVFormat
    pools: tuple[Buffer, Buffer]
    place: Expr
    kv_head: Expr
    following: Expr | None = None

    def keys(self, i: Expr, t: Expr, n: int) -> Expr:
        """Component i of n tokens from t on: 16 as float32, 32 as they are stored."""
        return self._load(self.pools[0], i, t, n)

    def values(self, t: Expr, i: Expr, n: int) -> Expr:
        """n components of token t from i on."""
        return self._load(self.pools[1], t, i, n)

    def _load(self, pool: Buffer, row: Expr, at: Expr, n: int) -> Expr:
        if n == vector.LANES:
            return self.kv.cpu_load(pool, self.place, self.kv_head, row, at)
        return pool[self.place, self.kv_head, row, T.ramp(at, 1, n)]

    def scaled(self, x: Expr, which: int, sixteen: Expr) -> Expr:
        """x times the scales of its 16 tokens' keys or values, in a format that has them."""
        head_dim = int(self.pools[1].shape[-1])
        scales = self.kv.cpu_scales(
            self.pools[0], head_dim, which, self.place, self.kv_head, sixteen
        )
        return x if scales is None else x * scales

    def fetch_values(self, at: Expr, count: int) -> None:
        """Ask for elements at .. at + count - 1 of this page's values."""
        self._fetch(self.pools[1], self.place, at, count)

    def fetch_next_keys(self, at: Expr, count: int) -> None:
        """Ask for elements at .. at + count - 1 of the following page's keys."""
        if self.following is not None:
            self._fetch(self.pools[0], self.following, at, count)

    def _fetch(self, pool: Buffer, place: Expr, at: Expr, count: int) -> None:
        line = CACHE_LINE // np.dtype(pool.dtype).itemsize
        for element in range(0, count, line):
            vector.prefetch(pool, place, self.kv_head, 0, at + element)


def score_tile(shape: Shape, block: Block, first: Expr, page: Page) -> None:
    """scores = queries of the tile's rows times the page's keys."""
    width = shape.columns * vector.LANES
    with T.serial(PAGE_SIZE // width) as part:
        tile = tile_registers(shape)
        each_vector(shape, lambda r, c: vector.store(tile[r], vector.splat(0.0), c))
        multiply_tile(
            shape,
            tile,
            shape.head_dim,
            block.queries,
            first,
            lambda i, c, n: page.keys(i, part * width + c, n),
            lambda i, n: page.fetch_values((part * shape.head_dim + i) * width, n * width),
        )

        def finish(r: int, c: int) -> None:
            score = page.scaled(
                vector.load(tile[r], c), KEYS, part * shape.columns + c // vector.LANES
            )
            vector.store(block.scores, score, r, part * width + c)

        each_vector(shape, finish)


def hide_unseen(shape: Shape, block: Block, first: Expr, page_slot: Expr) -> None:
    """Scores of slots past a row's limit fall below LOWEST, and so to weight 0."""
    with T.serial(shape.rows) as r:
        visible = T.Bind(block.limits[first + r] - page_slot)
        for t in range(0, PAGE_SIZE, vector.LANES):
            seen = T.ramp(t, 1, vector.LANES) <= T.broadcast(visible, vector.LANES)
            score = T.Select(
                seen, vector.load(block.scores, r, t), vector.splat(T.min_value("float32"))
            )
            vector.store(block.scores, score, r, t)


def weigh_tile(shape: Shape, block: Block, first: Expr, corrections: Buffer, page: Page) -> None:
    """Scores become softmax weights against the new running maximum; corrections[r] rescales the
    old output.

    A value's scale goes into its weight, once its row's sum has it without.
    """
    raise_maxima(shape, block, first, corrections)
    with T.serial(shape.rows) as r:
        new = T.Bind(vector.splat(block.maxima[first + r]))
        total = vector.load(block.sums, first + r, 0) * vector.splat(corrections[r])
        for part in range(PAGE_SIZE // vector.LANES):
            score = vector.load(block.scores, r, part * vector.LANES)
            weight = vector.in_order(vector.exp2_below_1(score - new))
            shape.arithmetic.put_left(
                block.weights, page.scaled(weight, VALUES, part), r, part * vector.LANES
            )
            total = total + weight
        vector.store(block.sums, total, first + r, 0)


def raise_maxima(shape: Shape, block: Block, first: Expr, corrections: Buffer) -> None:
    """The rows' maxima with those of the page's scores; corrections[r] = exp2(old - new), one
    exponential for all rows.
    """
    vector.store(corrections, vector.splat(0.0), 0)
    with T.serial(shape.rows) as r:
        scores = [vector.load(block.scores, r, t) for t in range(0, PAGE_SIZE, vector.LANES)]
        highest = T.max(T.max(scores[0], scores[1]), T.max(scores[2], scores[3]))
        old = T.Bind(block.maxima[first + r])
        new = T.Bind(T.max(old, vector.fold(T.max, T.Bind(highest))))
        T.buffer_store(corrections, old - new, [r])
        T.buffer_store(block.maxima, new, [first + r])
    vector.store(corrections, vector.exp2_below_1(vector.load(corrections, 0)), 0)


def add_values(
    shape: Shape, block: Block, first: Expr, corrections: Buffer, tokens: Expr, page: Page
) -> None:
    """output = output * correction + weights times the page's first `tokens` values."""
    width = shape.columns * vector.LANES
    with T.serial(shape.head_dim // width) as part:
        tile = tile_registers(shape)

        def start(r: int, c: int) -> None:
            rescaled = vector.load(block.output, first + r, part * width + c)
            vector.store(tile[r], rescaled * vector.splat(corrections[r]), c)

        def finish(r: int, c: int) -> None:
            vector.store(block.output, vector.load(tile[r], c), first + r, part * width + c)

        each_vector(shape, start)
        multiply_tile(
            shape,
            tile,
            tokens,
            block.weights,
            0,
            lambda t, c, n: page.values(t, part * width + c, n),
            lambda t, n: page.fetch_next_keys((part * PAGE_SIZE + t) * width, n * width),
        )
        each_vector(shape, finish)


def attend_page(shape: Shape, block: Block, tiles: Expr, page_slot: Expr, page: Page) -> None:
    """Fold one page into the first `tiles` tiles of a block.

    page_slot: the sequence's slot at the page's start, which row limits are held against.
    """
    with T.serial(tiles) as t:
        first = T.Bind(t * shape.rows)
        limits = [block.limits[first + r] for r in range(shape.rows)]
        tokens = T.Bind(T.min(reduce(T.max, limits) - page_slot + 1, PAGE_SIZE))
        with T.If(tokens > 0), T.Then():
            corrections = vector.registers(1)  # one for each of the tile's rows
            score_tile(shape, block, first, page)
            with T.If(reduce(T.min, limits) < page_slot + PAGE_SIZE - 1), T.Then():
                hide_unseen(shape, block, first, page_slot)
            weigh_tile(shape, block, first, corrections, page)
            add_values(shape, block, first, corrections, tokens, page)
