"""A chunk's logits of segments as products of integers: each mean is rounded once for all rows,
each query once a task. Both stand for what ops/formats/kv/int8_words.py says.

As in ops/cpu/score_segments.py the heads lie in the lanes of a vector. A mean meets them four
numbers at once; where an instruction takes one factor unsigned, that is the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import e, log2, sqrt

from minicpm_mlc.bundle.manifest import SEGMENTS
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.int8_dot import Activations, Int8Dot
from minicpm_mlc.ops.cpu.round_integers import round_row, start_of, words_of
from minicpm_mlc.ops.cpu.score_call import ScoreCall
from minicpm_mlc.ops.cpu.score_segments import Scorer
from minicpm_mlc.ops.formats.kv.int8 import LARGEST
from minicpm_mlc.ops.tir import Buffer, Expr, T

STEPS = 4  # words of four numbers that a loop takes in turn
UNSIGNED = -0x7F7F7F80  # flips the highest bit of each byte, which adds 128 to it


@dataclass(frozen=True)
class Means:
    """A sequence's means, rounded, in the order of its pages."""

    words: Buffer  # i32[kv_heads, pages, 4, d / 4]
    scales: Buffer  # f32[kv_heads, pages, 4]

    @staticmethod
    def allocate(kv_heads: int, pages: Expr, head_dim: int) -> Means:
        """Scratch for so many pages."""
        place = kv_heads, pages, SEGMENTS
        words = T.alloc_buffer((*place, head_dim // 4), "int32")
        return Means(words, T.alloc_buffer(place, "float32"))


@dataclass(frozen=True)
class Queries:
    """A task's queries, a lane for each row and head of a group."""

    words: Buffer  # i32[d / 4, width]
    scales: Buffer  # f32[width], of logits
    starts: Buffer  # i32[width], what a lane's sums start from


@dataclass(frozen=True, kw_only=True)
class IntegerScoreCall(ScoreCall):
    """A call for the rows of a chunk."""

    dot: Int8Dot
    means: Means

    def prefill(self) -> None:
        self.round_means()
        super().prefill()

    def round_means(self) -> None:
        """Of the pages that any row sees, a page and KV head a task."""
        head_dim, heads = int(self.q.shape[-1]), self.kv_heads
        pages = self.most_pages(self.n, lambda row: row)
        with T.parallel(pages * heads) as task, T.serial(SEGMENTS) as s:
            page, kv_head = T.Bind(task // heads), T.Bind(task % heads)
            place = T.Bind(T.Cast("int64", self.page_tables[0, page]))

            def read(at: Expr) -> Expr:
                return vector.load(self.k_means, place, kv_head, s, at)

            def write(x: Expr, at: Expr) -> None:
                words = words_of(x)
                if not self.dot.signed:
                    words = T.bitwise_xor(words, T.broadcast(T.int32(UNSIGNED), 4))
                T.buffer_store(self.means.words, words, [kv_head, page, s, T.ramp(at // 4, 1, 4)])

            largest, _ = round_row(head_dim // vector.LANES, int(LARGEST), read, write)
            scale = largest * T.float32(1 / LARGEST)
            T.buffer_store(self.means.scales, scale, [kv_head, page, s])

    def multiply(
        self,
        scorer: Scorer,
        rows: list[Expr],
        kv_head: Expr,
        begin: Expr,
        end: Expr,
        table: Expr = 0,
    ) -> None:
        """As of floats; a chunk has one page table."""
        queries = self.round_queries(rows[0], kv_head)
        whole = T.Bind((end - begin) // self.lanes.pages)
        with T.serial(whole) as step:
            page = T.Bind(begin + step * self.lanes.pages)
            self.multiply_tile(scorer, queries, kv_head, page, self.lanes.pages)
        with T.serial(end - begin - whole * self.lanes.pages) as step:
            page = T.Bind(begin + whole * self.lanes.pages + step)
            self.multiply_tile(scorer, queries, kv_head, page, 1)

    def round_queries(self, first: Expr, kv_head: Expr) -> Queries:
        """Of the task whose first row this is. The last row fills it up, the last head a group."""
        lanes, head_dim, group = self.lanes, int(self.q.shape[-1]), self.lanes.group
        words = T.alloc_buffer((head_dim // 4, lanes.width), "int32")
        scales = T.alloc_buffer((lanes.width,), "float32")
        starts = T.alloc_buffer((lanes.width,), "int32")
        with T.serial(lanes.width) as lane:
            row = first + lane // vector.LANES * lanes.rows + lane % lanes.rows
            row = T.Bind(T.min(row, self.n - 1))
            head = T.min(lane % vector.LANES // lanes.rows, group - 1)
            head = T.Bind(kv_head * group + head)

            def read(at: Expr) -> Expr:
                return vector.load(self.q, row, head, at)

            def write(x: Expr, at: Expr) -> None:
                four = T.Bind(words_of(x))
                for i in range(4):
                    T.buffer_store(words, T.Shuffle([four], [i]), [at // 4 + i, lane])

            levels = self.dot.query_levels
            largest, total = round_row(head_dim // vector.LANES, levels, read, write)
            scale = T.float32(log2(e) / sqrt(head_dim) / 2 / levels)
            T.buffer_store(scales, largest * scale, [lane])
            start = T.int32(0) if self.dot.signed else start_of(total)
            T.buffer_store(starts, start, [lane])
        return Queries(words, scales, starts)

    def multiply_tile(
        self, scorer: Scorer, queries: Queries, kv_head: Expr, page: Expr, pages: int
    ) -> None:
        """The logits of the pages page .. page + pages - 1."""
        means, width = self.means, self.lanes.width
        segments = list(product(range(pages), range(SEGMENTS)))
        sums = [T.alloc_buffer((width,), "int32", scope="global") for _ in segments]
        for total, lane in product(sums, range(0, width, vector.LANES)):
            at = T.ramp(lane, 1, vector.LANES)
            T.buffer_store(total, queries.starts[at], [at])
        with T.serial(queries.words.shape[0] // STEPS) as step:
            splats = [self.splats(kv_head, page + p, s, step * STEPS) for p, s in segments]
            for i in range(STEPS):
                self.multiply_word(sums, splats, queries, step * STEPS + i)
        for (p, s), total in zip(segments, sums, strict=True):
            scale = T.Bind(vector.splat(means.scales[kv_head, page + p, s]))
            for lane in range(0, width, vector.LANES):
                sum_ = T.Cast("float32x16", total[T.ramp(lane, 1, vector.LANES)])
                logit = sum_ * vector.load(queries.scales, lane) * scale
                vector.store(scorer.logits, logit, scorer.base + (page + p) * SEGMENTS + s, lane)

    def multiply_word(
        self, sums: list[Buffer], splats: list[Iterator[Expr]], queries: Queries, word: Expr
    ) -> None:
        """Add the products of the next four numbers of each segment with those of each lane."""
        lanes = range(0, self.lanes.width, self.dot.rows)
        dtype = f"int8x{4 * self.dot.rows}"
        columns = [
            T.Bind(T.reinterpret(queries.words[word, T.ramp(lane, 1, self.dot.rows)], dtype=dtype))
            for lane in lanes
        ]
        for total, each in zip(sums, splats, strict=True):
            mean = next(each)
            for lane, column in zip(lanes, columns, strict=True):
                factors = (column, mean) if self.dot.signed else (mean, column)
                at = T.ramp(lane, 1, self.dot.rows)
                T.buffer_store(total, self.dot.multiply(total[at], *factors), [at])

    def splats(self, kv_head: Expr, page: Expr, s: int, first: Expr) -> Iterator[Expr]:
        """A segment's words from the first on, each everywhere in a register."""

        def word(i: int, n: int) -> Expr:
            at = T.ramp(first + i, 1, n) if n > 1 else first + i
            return self.means.words[kv_head, page, s, at]

        return self.dot.words(Activations(word, T.int32(0)))
