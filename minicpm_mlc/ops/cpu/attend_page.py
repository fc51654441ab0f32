"""One page of keys and values against a block of query rows, softmax online (flash attention).

Rows are (token, query head) pairs that share one KV head. A block of rows keeps its queries,
running maximum, running sum and unnormalised output in scratch, and `attend_page` folds one page
into them: any set of pages, in any order, gives the attention over that set.

Inside a page, keys lie [head_dim, 64] and values [64, head_dim], so both products are the same
register tile: rows of sums, a number of the left matrix times a vector of the right one. The left
matrices and the tiles are those of an arithmetic: of floats (attend_floats.py) or of integers
(attend_integers.py). Scores are kept in units of log2, so that the exponential is exp2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from math import e, log2, sqrt

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv import VALUES, KVFormat
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

CACHE_LINE = 64  # bytes


@dataclass(frozen=True)
class Shape:
    """What an attention kernel is compiled for; a register tile is `rows` x `width` sums."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rows: int
    width: int
    arithmetic: Arithmetic

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


class Arithmetic(ABC):
    """What numbers the two products of attention are made of."""

    @abstractmethod
    def products(self, shape: Shape, rows: int) -> Products:
        """Scratch for a block of so many rows."""

    def functions(self) -> AbstractContextManager[None]:
        """Around a kernel's body: what its instructions need."""
        return nullcontext()


class Products(ABC):
    """The two products of a block: queries times keys, and softmax weights times values; with
    their left matrices, the block's queries and the weights of one tile and page.
    """

    @abstractmethod
    def put_query(self, row: Expr, q: Buffer, token: Expr, head: Expr) -> None:
        """The block's row `row` is the query of (token, head)."""

    @abstractmethod
    def score(self, scores: Buffer, first: Expr, page: Page) -> None:
        """scores f32[tile rows, 64] = queries of the tile's rows, from `first` on, times the
        page's keys.
        """

    @abstractmethod
    def put_weights(self, row: Expr, token: int, x: Expr) -> None:
        """The weights of 16 tokens, times their values' scales, of a row of the tile."""

    @abstractmethod
    def add_values(
        self, output: Buffer, first: Expr, corrections: Buffer, tokens: Expr, page: Page
    ) -> None:
        """The tile's rows of the output f32[rows, d] = themselves * correction + weights times the
        page's first `tokens` values.
        """


@dataclass(frozen=True)
class Block:
    """Scratch of one row block: what `attend_page` reads and folds a page into."""

    products: Products
    limits: Buffer  # i32[rows], the last slot that a row sees
    maxima: Buffer  # f32[rows]
    sums: Buffer  # f32[rows, 16], one partial sum per lane
    output: Buffer  # f32[rows, d], not yet divided by the sum
    scores: Buffer  # f32[tile rows, 64] of one tile and page

    @staticmethod
    def allocate(shape: Shape, rows: int) -> Block:
        """Scratch of whole tiles; the rows past the real ones repeat the last real one."""
        rows = shape.tiles(rows) * shape.rows
        return Block(
            shape.arithmetic.products(shape, rows),
            T.alloc_buffer((rows,), "int32"),
            T.alloc_buffer((rows,), "float32"),
            T.alloc_buffer((rows, vector.LANES), "float32"),
            T.alloc_buffer((rows, shape.head_dim), "float32"),
            T.alloc_buffer((shape.rows, PAGE_SIZE), "float32"),
        )

    def load_row(self, row: Expr, q: Buffer, token: Expr, head: Expr, slot: Expr) -> None:
        """Start row `row` with the query of (token, head) and nothing seen."""
        T.buffer_store(self.limits, slot, [row])
        T.buffer_store(self.maxima, T.float32(LOWEST), [row])
        vector.store(self.sums, vector.splat(0.0), row, 0)
        self.products.put_query(row, q, token, head)
        for j in range(0, int(self.output.shape[1]), vector.LANES):
            vector.store(self.output, vector.splat(0.0), row, j)

    def sum_of(self, row: Expr) -> Expr:
        """The softmax denominator of a row."""
        return vector.fold(lambda a, b: a + b, T.Bind(vector.load(self.sums, row, 0)))


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

    def key_words(self, i: Expr, t: Expr, lanes: int) -> Expr:
        """Components i .. i + 3, a multiple of 4, of so many tokens from t on, int8[4 lanes]."""
        return self.kv.cpu_words(self.pools[0], self.place, self.kv_head, i, t, lanes=lanes)

    def value_words(self, t: Expr, i: Expr, lanes: int) -> Expr:
        """So many components, from i on, of tokens t .. t + 3, int8[4 lanes]."""
        return self.kv.cpu_words(self.pools[1], self.place, self.kv_head, t, i, lanes=lanes)

    def scaled(self, x: Expr, which: int, token: Expr, lanes: int = vector.LANES) -> Expr:
        """x times the scales of the keys or values of so many tokens, in a format that has them."""
        head_dim = int(self.pools[1].shape[-1])
        scales = self.kv.cpu_scales(
            self.pools[0], head_dim, which, self.place, self.kv_head, token, lanes
        )
        return x if scales is None else x * scales

    def fetch_values(self, at: Expr, count: int) -> None:
        """Ask for elements at .. at + count - 1 of this page's values."""
        self._fetch(self.pools[1], self.place, at, count)

    def fetch_next_keys(self, at: Expr, count: int) -> None:
        """Ask for elements at .. at + count - 1 of the following page's keys."""
        if self.following is not None:
            self._fetch(self.pools[0], self.following, at, count)

    def fetch_next_values(self, at: Expr, count: int) -> None:
        """Ask for elements at .. at + count - 1 of the following page's values."""
        if self.following is not None:
            self._fetch(self.pools[1], self.following, at, count)

    def _fetch(self, pool: Buffer, place: Expr, at: Expr, count: int) -> None:
        line = CACHE_LINE // np.dtype(pool.dtype).itemsize
        for element in range(0, count, line):
            vector.prefetch(pool, place, self.kv_head, 0, at + element)


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
        # 0, which LLVM can't know: it would put scales that are the same for all rows on the stack
        nothing = T.Bind(T.min(block.limits[first + r], 0))
        total = vector.load(block.sums, first + r, 0) * vector.splat(corrections[r])
        for token in range(0, PAGE_SIZE, vector.LANES):
            score = vector.load(block.scores, r, token)
            weight = vector.in_order(vector.exp2_below_1(score - new))
            block.products.put_weights(r, token, page.scaled(weight, VALUES, token + nothing))
            total = vector.in_order(total + weight)  # here, as a multiply-add of what makes it
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
            block.products.score(block.scores, first, page)
            with T.If(reduce(T.min, limits) < page_slot + PAGE_SIZE - 1), T.Then():
                hide_unseen(shape, block, first, page_slot)
            weigh_tile(shape, block, first, corrections, page)
            block.products.add_values(block.output, first, corrections, tokens, page)
