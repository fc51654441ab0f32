"""One call of sparse attention's first stage: which task walks which pages of which rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from minicpm_mlc.bundle.manifest import SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.score_segments import Lanes, Scorer
from minicpm_mlc.ops.tir import Buffer, Expr, T

SPLIT_PAGES = 32  # the least work worth a split of its own in decode: 10 us
MAX_SPLITS = 16
AHEAD = 8  # pages between the one multiplied and the one asked for: the memory's latency


@dataclass(frozen=True)
class ScoreCall:
    """The buffers of one call, and its loops."""

    lanes: Lanes
    kv_heads: int
    n: Expr
    p: Expr
    q: Buffer
    k_means: Buffer
    page_tables: Buffer
    positions: Buffer
    pooled: Buffer

    def prefill(self) -> None:
        """A task owns a few rows of one KV head and does all the walks."""
        task_rows = self.lanes.task_rows
        with T.parallel((self.n + task_rows - 1) // task_rows * self.kv_heads) as task:
            kv_head = T.Bind(task % self.kv_heads)
            start = T.Bind(task // self.kv_heads * task_rows)

            def row_at(i: Expr) -> Expr:
                """The last row fills the task up."""
                return T.Bind(T.min(start + i, self.n - 1))

            rows = [row_at(i) for i in range(task_rows)]
            pages = self.most_pages(task_rows, row_at)
            scorer = Scorer(self.lanes, self.scratch(1), 0)
            self.multiply(scorer, rows, kv_head, T.int64(0), pages)
            windows, coarse = scorer.load_limits(self.positions, rows)
            for v in range(self.lanes.vectors):
                lse = scorer.log_sum_exp(v, coarse, pages)
                scorer.pool(v, lse, windows, T.int64(0), pages, partial(self.write, rows, kv_head))
            for row in rows:
                self.clear(row, kv_head, pages)

    def decode(self) -> None:
        """A task owns a share of one row's pages, for one KV head; the log-sum-exp between the two
        walks is whole.
        """
        pairs = T.Bind(self.n * self.kv_heads)
        logits = self.scratch(pairs)
        sums = T.alloc_buffer((pairs, vector.LANES), "float32")
        splits = T.Bind(T.max(T.min(self.p // SPLIT_PAGES, MAX_SPLITS), 1))

        def scorer_of(pair: Expr) -> Scorer:
            return Scorer(self.lanes, logits, vector.opaque(pair * (self.p + 1) * SEGMENTS))

        def each_share(visit: Callable[[Expr, Expr, Expr], None]) -> None:
            """visit(row and KV head as one number, first page, end) on all threads."""
            with T.parallel(splits * pairs) as task:
                pair, split = T.Bind(task % pairs), T.Bind(task // pairs)
                pages = self.pages(pair // self.kv_heads)
                visit(
                    pair,
                    vector.opaque(pages * split // splits),
                    vector.opaque(pages * (split + 1) // splits),
                )

        def multiply(pair: Expr, begin: Expr, end: Expr) -> None:
            row, kv_head = T.Bind(pair // self.kv_heads), T.Bind(pair % self.kv_heads)
            self.multiply(scorer_of(pair), [row], kv_head, begin, end, row)

        def pool(pair: Expr, begin: Expr, end: Expr) -> None:
            row, kv_head, scorer = (
                T.Bind(pair // self.kv_heads),
                T.Bind(pair % self.kv_heads),
                scorer_of(pair),
            )
            windows, _ = scorer.load_limits(self.positions, [row])
            lse = T.Bind(vector.load(sums, pair, 0))
            scorer.pool(0, lse, windows, begin, end, partial(self.write, [row], kv_head))

        each_share(multiply)
        with T.parallel(pairs) as pair:
            row, kv_head, scorer = (
                T.Bind(pair // self.kv_heads),
                T.Bind(pair % self.kv_heads),
                scorer_of(pair),
            )
            _, coarse = scorer.load_limits(self.positions, [row])
            vector.store(sums, scorer.log_sum_exp(0, coarse, self.pages(row)), pair, 0)
            self.clear(row, kv_head, self.pages(row))
        each_share(pool)

    def scratch(self, pairs: Expr) -> Buffer:
        """Logits for `pairs` of a row and a KV head; a page more each, since windows reach into the
        next.
        """
        return T.alloc_buffer((pairs * (self.p + 1) * SEGMENTS, self.lanes.width), "float32")

    def pages(self, row: Expr) -> Expr:
        """Pages that a window up to the row's position begins in, at least 1."""
        windows = T.max((self.positions[row] + 1) // SEGMENT_SIZE - 1, 0)
        return T.Bind(T.Cast("int64", windows // SEGMENTS + 1))

    def most_pages(self, count: Expr, row_at: Callable[[Expr], Expr]) -> Expr:
        """The largest `pages` of the rows row_at(0) .. row_at(count - 1)."""
        most = T.alloc_buffer((1,), "int64")
        T.buffer_store(most, T.int64(1), [0])
        with T.serial(count) as i:
            T.buffer_store(most, T.max(most[0], self.pages(row_at(i))), [0])
        return T.Bind(most[0])

    def multiply(
        self,
        scorer: Scorer,
        rows: list[Expr],
        kv_head: Expr,
        begin: Expr,
        end: Expr,
        table: Expr = 0,
    ) -> Expr:
        """The logits of the pages begin .. end - 1, several pages at once while there are. Returns
        the queries.
        """
        queries = scorer.load_queries(self.q, rows, kv_head)

        def tile(page: Expr, pages: int) -> None:
            places = [
                T.Bind(T.Cast("int64", self.page_tables[table, page + p])) for p in range(pages)
            ]
            ahead = [T.min(page + AHEAD + p, end - 1) for p in range(pages)]
            later = [T.Bind(T.Cast("int64", self.page_tables[table, at])) for at in ahead]

            def fetch(line: Expr) -> None:
                for place in later:
                    vector.prefetch(self.k_means, place, kv_head, 0, line * vector.LANES)

            scorer.multiply(
                queries, lambda p, s, i: self.k_means[places[p], kv_head, s, i], page, pages, fetch
            )

        whole = T.Bind((end - begin) // self.lanes.pages)
        with T.serial(whole) as step:
            tile(T.Bind(begin + step * self.lanes.pages), self.lanes.pages)
        with T.serial(end - begin - whole * self.lanes.pages) as step:
            tile(T.Bind(begin + whole * self.lanes.pages + step), 1)
        return queries

    def write(self, rows: list[Expr], kv_head: Expr, row: int, page: Expr, score: Expr) -> None:
        T.buffer_store(self.pooled, score, [rows[row], kv_head, page])

    def clear(self, row: Expr, kv_head: Expr, begin: Expr) -> None:
        """Score 0 for the pages from `begin` on."""
        with T.serial(self.p - begin) as step:
            T.buffer_store(self.pooled, T.float32(0), [row, kv_head, begin + step])
