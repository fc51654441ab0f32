"""How much each block matters to a query: InfLLM-v2's first stage, from the segments' means
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.score_segments import Lanes, Scorer
from minicpm_mlc.ops.paged import SEGMENT_SIZE
from minicpm_mlc.ops.tir import T

SPLIT_PAGES = 32  # the least work worth a split of its own in decode: 10 us
MAX_SPLITS = 16
AHEAD = 8  # pages between the one multiplied and the one asked for: the memory's latency


def score_blocks_definition(
    q: np.ndarray,
    k_means: np.ndarray,
    page_tables: np.ndarray,
    positions: np.ndarray,
    page_size: int = PAGE_SIZE,
) -> np.ndarray:
    """Pooled scores, float64 [n, kv_heads, p]; blocks without a finished window, and those past the
    query's own, get 0.

    q [n, heads, d]; k_means [pages, kv_heads, 4, d]; page_tables [n, p], or [1, p]; positions [n].
    With K1[j] = (M[j] + M[j+1]) / 2 and K2[j] = mean(M[4j .. 4j+7]), both only of keys up to the
    position, a window's score is s[j] = sum over the group's heads of exp(q K1[j] / sqrt(d) -
    logsumexp of q K2 / sqrt(d)); a block's is the largest of the five windows that touch it. Scores
    have float32's range: a head's below 2^-126 counts as 0.
    """
    segment = page_size // SEGMENTS
    kv_heads, head_dim = k_means.shape[1], k_means.shape[-1]
    pooled = np.zeros((len(q), kv_heads, page_tables.shape[1]))
    for row, position in enumerate(positions):
        windows, coarse = (int(position) + 1) // segment - 1, (int(position) + 1) // page_size - 1
        if coarse <= 0:
            continue
        table = page_tables[row if len(page_tables) > 1 else 0][: windows // SEGMENTS + 1]
        means = k_means[table].astype(np.float64).swapaxes(1, 2).reshape(-1, kv_heads, head_dim)
        queries = q[row].astype(np.float64).reshape(kv_heads, -1, head_dim) / np.sqrt(head_dim)
        logits = np.einsum("kgd,jkd->kgj", queries, means[: windows + 1])
        fine = (logits[..., :-1] + logits[..., 1:]) / 2
        pages = (
            logits[..., : (coarse + 1) * SEGMENTS].reshape(*logits.shape[:2], -1, SEGMENTS).sum(-1)
        )
        lse = np.logaddexp.reduce((pages[..., :-1] + pages[..., 1:]) / (2 * SEGMENTS), axis=-1)
        exponents = np.minimum(fine - lse[..., None], 700.0)
        scores = np.where(exponents < np.log(2.0**-126), 0.0, np.exp(exponents)).sum(1)
        scores[scores > np.finfo(np.float32).max] = np.inf
        for block in range(windows // SEGMENTS + 1):
            touching = scores[:, max(0, SEGMENTS * block - 1) : SEGMENTS * block + SEGMENTS]
            pooled[row, :, block] = touching.max(-1, initial=0.0)
    return pooled


def score_blocks(
    num_heads: int, num_kv_heads: int, head_dim: int, batched: bool, tile_vectors: int = 4
) -> Any:
    """PrimFunc (q f32[n, h, d], k_means f32[pages, k, 4, d], page_tables i32[s, p], positions
    i32[n]) -> f32[n, k, p].

    As in score_blocks_definition. Row r uses page table r when `batched` (decode; each row is split
    over threads), else the only one (prefill). `tile_vectors`: accumulators of 16 lanes that fit
    the registers. Raises CompileError for groups of more than 16 heads.
    """
    lanes = Lanes.of(num_heads // num_kv_heads, batched, tile_vectors)
    tile_pages = 2 if tile_vectors >= 2 * SEGMENTS * lanes.vectors else 1

    def emit(*arguments: Any) -> None:
        call = Call(lanes, tile_pages, num_kv_heads, *arguments)
        (call.decode if batched else call.prefill)()

    @T.prim_func(private=True)
    def score_blocks(
        q_handle: T.handle,
        k_means_handle: T.handle,
        page_tables_handle: T.handle,
        positions_handle: T.handle,
        pooled_handle: T.handle,
    ):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        s = T.int64()
        p = T.int64()
        num_pages = T.int64()
        q = T.match_buffer(q_handle, (n, num_heads, head_dim), "float32")
        k_means = T.match_buffer(
            k_means_handle, (num_pages, num_kv_heads, SEGMENTS, head_dim), "float32"
        )
        page_tables = T.match_buffer(page_tables_handle, (s, p), "int32")
        positions = T.match_buffer(positions_handle, (n,), "int32")
        pooled = T.match_buffer(pooled_handle, (n, num_kv_heads, p), "float32")
        emit(n, p, q, k_means, page_tables, positions, pooled)

    return score_blocks


@dataclass(frozen=True)
class Call:
    """The buffers of one call, and its loops."""

    lanes: Lanes
    tile_pages: int  # pages multiplied at once
    kv_heads: int
    n: Any
    p: Any
    q: Any
    k_means: Any
    page_tables: Any
    positions: Any
    pooled: Any

    def prefill(self) -> None:
        """A task owns a few rows of one KV head and does all the walks."""
        task_rows = self.lanes.task_rows
        with T.parallel((self.n + task_rows - 1) // task_rows * self.kv_heads) as task:
            kv_head = T.Bind(task % self.kv_heads)
            start = T.Bind(task // self.kv_heads * task_rows)
            rows = [
                T.Bind(T.min(start + r, self.n - 1)) for r in range(task_rows)
            ]  # the last one fills the task up
            pages = self.most_pages(rows)
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

        def scorer_of(pair: Any) -> Scorer:
            return Scorer(self.lanes, logits, opaque(pair * (self.p + 1) * SEGMENTS))

        def each_share(visit: Callable[[Any, Any, Any], None]) -> None:
            """visit(row and KV head as one number, first page, end) on all threads."""
            with T.parallel(splits * pairs) as task:
                pair, split = T.Bind(task % pairs), T.Bind(task // pairs)
                pages = self.pages(pair // self.kv_heads)
                visit(pair, opaque(pages * split // splits), opaque(pages * (split + 1) // splits))

        def multiply(pair: Any, begin: Any, end: Any) -> None:
            row, kv_head = T.Bind(pair // self.kv_heads), T.Bind(pair % self.kv_heads)
            self.multiply(scorer_of(pair), [row], kv_head, begin, end, row)

        def pool(pair: Any, begin: Any, end: Any) -> None:
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

    def scratch(self, pairs: Any) -> Any:
        """Logits for `pairs` of a row and a KV head; a page more each, since windows reach into the
        next.
        """
        return T.alloc_buffer((pairs * (self.p + 1) * SEGMENTS, self.lanes.width), "float32")

    def pages(self, row: Any) -> Any:
        """Pages that a window up to the row's position begins in, at least 1."""
        windows = T.max((self.positions[row] + 1) // SEGMENT_SIZE - 1, 0)
        return T.Bind(T.Cast("int64", windows // SEGMENTS + 1))

    def most_pages(self, rows: list[Any]) -> Any:
        most = T.alloc_buffer((1,), "int64")
        T.buffer_store(most, T.int64(1), [0])
        for row in rows:
            T.buffer_store(most, T.max(most[0], self.pages(row)), [0])
        return T.Bind(most[0])

    def multiply(
        self, scorer: Scorer, rows: list[Any], kv_head: Any, begin: Any, end: Any, table: Any = 0
    ) -> Any:
        """The logits of the pages begin .. end - 1, several pages at once while there are. Returns
        the queries.
        """
        queries = scorer.load_queries(self.q, rows, kv_head)

        def tile(page: Any, pages: int) -> None:
            places = [
                T.Bind(T.Cast("int64", self.page_tables[table, page + p])) for p in range(pages)
            ]
            ahead = [T.min(page + AHEAD + p, end - 1) for p in range(pages)]
            later = [T.Bind(T.Cast("int64", self.page_tables[table, at])) for at in ahead]

            def fetch(line: Any) -> None:
                for place in later:
                    vector.prefetch(self.k_means, place, kv_head, 0, line * vector.LANES)

            scorer.multiply(
                queries, lambda p, s, i: self.k_means[places[p], kv_head, s, i], page, pages, fetch
            )

        whole = T.Bind((end - begin) // self.tile_pages)
        with T.serial(whole) as step:
            tile(T.Bind(begin + step * self.tile_pages), self.tile_pages)
        with T.serial(end - begin - whole * self.tile_pages) as step:
            tile(T.Bind(begin + whole * self.tile_pages + step), 1)
        return queries

    def write(self, rows: list[Any], kv_head: Any, row: int, page: Any, score: Any) -> None:
        T.buffer_store(self.pooled, score, [rows[row], kv_head, page])

    def clear(self, row: Any, kv_head: Any, begin: Any) -> None:
        """Score 0 for the pages from `begin` on."""
        with T.serial(self.p - begin) as step:
            T.buffer_store(self.pooled, T.float32(0), [row, kv_head, begin + step])


def opaque(value: Any) -> Any:
    """An int64 that TVM's index analysis can't look into: seeing through all of them takes it half
    a minute.
    """
    cell = T.alloc_buffer((1,), "int64")
    T.buffer_store(cell, value, [0])
    return T.Bind(cell[0])
