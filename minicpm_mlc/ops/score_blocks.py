"""How much each block matters to a query: InfLLM-v2's first stage, from the segments' means alone.

The heads of a group lie in the lanes of one vector, so that a mean is read once for all of them and the softmax over
windows needs no reduction: x[segment, lane] = mean . query, then three walks over x find the log-sum-exp, the
windows' scores and their pooled maximum. x is scratch of one task: 64 bytes per segment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import e, log2, sqrt
from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.errors import CompileError
from minicpm_mlc.ops import vector
from minicpm_mlc.ops.rope import PAGE_SIZE
from minicpm_mlc.ops.segment_means import SEGMENT_SIZE, SEGMENTS

LOWEST = -3e38
SPLIT_PAGES = 32  # the least work worth a split of its own in decode: 20 us
MAX_SPLITS = 16


def score_blocks_definition(
    q: np.ndarray, k_means: np.ndarray, page_tables: np.ndarray, positions: np.ndarray, page_size: int = PAGE_SIZE
) -> np.ndarray:
    """Pooled scores, float64 [n, kv_heads, p]; blocks without a finished window, and those past the query's own, get 0.

    q [n, heads, d]; k_means [pages, kv_heads, 4, d]; page_tables [n, p], or [1, p]; positions [n].
    With K1[j] = (M[j] + M[j+1]) / 2 and K2[j] = mean(M[4j .. 4j+7]), both only of keys up to the position, a window's
    score is s[j] = sum over the group's heads of exp(q K1[j] / sqrt(d) - logsumexp of q K2 / sqrt(d)); a block's is
    the largest of the five windows that touch it. Scores have float32's range: each head's below 2^-126 count as 0.
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
        pages = logits[..., : (coarse + 1) * SEGMENTS].reshape(*logits.shape[:2], -1, SEGMENTS).sum(-1)
        lse = np.logaddexp.reduce((pages[..., :-1] + pages[..., 1:]) / (2 * SEGMENTS), axis=-1)
        exponents = np.minimum(fine - lse[..., None], 700.0)
        scores = np.where(exponents < np.log(2.0**-126), 0.0, np.exp(exponents)).sum(1)
        for block in range(windows // SEGMENTS + 1):
            touching = scores[:, max(0, SEGMENTS * block - 1) : SEGMENTS * block + SEGMENTS]
            pooled[row, :, block] = touching.max(-1, initial=0.0)
    return pooled


@dataclass(frozen=True)
class Lanes:
    """Lane l of vector v holds row v * rows + l % rows and head l // rows of a group.

    `rows`: query rows in one vector, a power of two; `vectors`: vectors of one task; heads past `group` are padding.
    """

    group: int
    rows: int
    vectors: int

    @staticmethod
    def of(group: int, batched: bool, tile_vectors: int) -> Lanes:
        """Decode has a row per task; prefill packs as many as fit, since they share the means they read."""
        if group > vector.LANES:
            raise CompileError(f"{group} query heads share a KV head; sparse attention takes at most {vector.LANES}")
        if batched:
            return Lanes(group, 1, 1)
        padded = 1 << (group - 1).bit_length()
        return Lanes(group, vector.LANES // padded, max(1, tile_vectors // SEGMENTS))

    @property
    def task_rows(self) -> int:
        return self.rows * self.vectors

    @property
    def width(self) -> int:
        return self.vectors * vector.LANES


@dataclass(frozen=True)
class Scorer:
    """What one task keeps for its rows; `base` is where its segments start in `logits`."""

    lanes: Lanes
    head_dim: int
    logits: Any  # f32[segments, width]: half of mean . query, in units of log2
    base: Any

    def load_queries(self, q: Any, kv_head: Any, row_of: Callable[[int], Any]) -> Any:
        """f32[d, width], scaled so that a window's score is the sum of two logits."""
        lanes = self.lanes
        queries = T.alloc_buffer((self.head_dim, lanes.width), "float32")
        scale = T.float32(log2(e) / sqrt(self.head_dim) / 2)
        rows = [T.Bind(row_of(r)) for r in range(lanes.task_rows)]
        with T.serial(self.head_dim) as i:
            for lane in range(lanes.width):
                row = rows[lane // vector.LANES * lanes.rows + lane % lanes.rows]
                head = kv_head * lanes.group + min(lane % vector.LANES // lanes.rows, lanes.group - 1)
                T.buffer_store(queries, q[row, head, i] * scale, [i, lane])
        return queries

    def load_limits(self, positions: Any, row_of: Callable[[int], Any]) -> tuple[Any, Any]:
        """i32[width] each: windows and coarse windows that a lane sees; padding sees none."""
        lanes = self.lanes
        windows = T.alloc_buffer((lanes.width,), "int32", scope="local")
        coarse = T.alloc_buffer((lanes.width,), "int32", scope="local")
        for row in range(lanes.task_rows):
            tokens = T.Bind(positions[row_of(row)] + 1)
            v, r = divmod(row, lanes.rows)
            for head in range(vector.LANES // lanes.rows):
                lane = v * vector.LANES + head * lanes.rows + r
                T.buffer_store(windows, tokens // SEGMENT_SIZE - 1, [lane])
                T.buffer_store(coarse, tokens // PAGE_SIZE - 1 if head < lanes.group else 0, [lane])
        return windows, coarse

    def at(self, page: Any, segment: Any, v: int) -> Any:
        """The logits of one segment, vector v."""
        return vector.load(self.logits, self.base + page * SEGMENTS + segment, v * vector.LANES)

    def multiply(self, queries: Any, k_means: Any, place: Callable[[Any], Any], kv_head: Any, page: Any, count: int):
        """logits of the pages page .. page + count - 1."""
        lanes = self.lanes
        places = [T.Bind(T.Cast("int64", place(page + c))) for c in range(count)]
        each = [(v, c, s) for v in range(lanes.vectors) for c in range(count) for s in range(SEGMENTS)]
        tile = vector.registers(len(each))
        for at in range(len(each)):
            vector.store(tile, vector.splat(0.0), at * vector.LANES)
        with T.serial(self.head_dim) as i:
            means = {}
            for at, (v, c, s) in enumerate(each):
                if v == 0:
                    means[c, s] = T.Bind(vector.splat(k_means[places[c], kv_head, s, i]))
                query = vector.load(queries, i, v * vector.LANES)
                vector.store(tile, vector.load(tile, at * vector.LANES) + query * means[c, s], at * vector.LANES)
        for at, (v, c, s) in enumerate(each):
            segment = self.base + (page + c) * SEGMENTS + s
            vector.store(self.logits, vector.load(tile, at * vector.LANES), segment, v * vector.LANES)

    def log_sum_exp(self, v: int, coarse: Any, pages: Any) -> Any:
        """log2 of the sum of exp2 over the coarse windows that each lane of vector v sees; 3e38 where it sees none."""
        limit = T.Bind(coarse[T.ramp(v * vector.LANES, 1, vector.LANES)])
        highest, total = vector.registers(1), vector.registers(1)
        vector.store(highest, vector.splat(LOWEST), 0)
        vector.store(total, vector.splat(0.0), 0)

        def each_window(visit: Callable[[Any, Any], None]) -> None:
            with T.serial(pages - 1) as page:
                values = [self.at(page, s, v) for s in range(2 * SEGMENTS)]
                while len(values) > 1:
                    values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
                seen = T.broadcast(T.Cast("int32", page), vector.LANES) < limit
                visit(T.Bind(values[0] * vector.splat(1 / SEGMENTS)), seen)

        def raise_highest(x: Any, seen: Any) -> None:
            vector.store(highest, T.max(vector.load(highest, 0), T.Select(seen, x, vector.splat(LOWEST))), 0)

        def add(x: Any, seen: Any) -> None:
            power = vector.exp2(x - vector.load(highest, 0))
            vector.store(total, vector.load(total, 0) + T.Select(seen, power, vector.splat(0.0)), 0)

        each_window(raise_highest)
        each_window(add)
        value = vector.load(highest, 0) + log2_of(T.Bind(T.max(vector.load(total, 0), vector.splat(1.0))))
        return T.Bind(T.Select(limit > T.broadcast(0, vector.LANES), value, vector.splat(-LOWEST)))

    def pool(self, v: int, lse: Any, windows: Any, begin: Any, count: Any, write: Callable[[int, Any, Any], None]):
        """write(row, page, score) for the pages begin .. begin + count - 1 and each row of vector v."""
        rows = self.lanes.rows
        wide = T.ramp(v * vector.LANES, 1, rows) if rows > 1 else v * vector.LANES
        limit = T.Bind(windows[wide])

        def score(page: Any, s: int) -> Any:
            """s[window 4 page + s]: the exponentials' sum over the heads, one lane per row."""
            power = vector.exp2(self.at(page, s, v) + self.at(page, s + 1, v) - lse)
            window = T.Cast("int32", page * SEGMENTS + s)
            seen = (T.broadcast(window, rows) if rows > 1 else window) < limit
            zero = T.broadcast(T.float32(0), rows) if rows > 1 else T.float32(0)
            return T.Bind(T.Select(seen, vector.fold(lambda a, b: a + b, power, rows), zero))

        previous = T.alloc_buffer((rows,), "float32", scope="local")
        lane = T.ramp(0, 1, rows) if rows > 1 else 0
        T.buffer_store(previous, T.broadcast(T.float32(0), rows) if rows > 1 else T.float32(0), [lane])
        with T.If(begin > 0), T.Then():
            T.buffer_store(previous, score(begin - 1, SEGMENTS - 1), [lane])
        with T.serial(count) as step:
            page = T.Bind(begin + step)
            scores = [score(page, s) for s in range(SEGMENTS)]
            best = T.Bind(T.max(T.max(T.max(scores[0], scores[1]), T.max(scores[2], scores[3])), previous[lane]))
            T.buffer_store(previous, scores[-1], [lane])
            for r in range(rows):
                write(v * rows + r, page, T.Shuffle([best], [r]) if rows > 1 else best)


def log2_of(x: Any) -> Any:
    """log2 of lanes >= 1, by three Newton steps on exp2 from the exponent and mantissa (off by at most 0.09)."""
    guess = vector.registers(1)
    bits = T.Cast("float32x16", T.reinterpret(x, dtype="int32x16"))
    vector.store(guess, bits * vector.splat(2.0**-23) - vector.splat(127.0), 0)
    with T.serial(3):
        y = T.Bind(vector.load(guess, 0))
        vector.store(guess, y + (x * vector.exp2(-y) - vector.splat(1.0)) * vector.splat(log2(e)), 0)
    return vector.load(guess, 0)


def opaque(value: Any) -> Any:
    """An int64 that TVM's index analysis can't look into: with these inlined it takes half a minute."""
    cell = T.alloc_buffer((1,), "int64", scope="local")
    T.buffer_store(cell, value, [0])
    return T.Bind(cell[0])


def score_blocks(num_heads: int, num_kv_heads: int, head_dim: int, batched: bool, tile_vectors: int = 4) -> Any:
    """PrimFunc (q f32[n, h, d], k_means f32[pages, k, 4, d], page_tables i32[s, p], positions i32[n]) -> f32[n, k, p].

    As in score_blocks_definition. Row r uses page table r when `batched` (decode; each row is split over threads),
    else the only one (prefill). `tile_vectors`: accumulators of 16 lanes that fit the registers.
    """
    lanes = Lanes.of(num_heads // num_kv_heads, batched, tile_vectors)
    pages_at_once = max(1, tile_vectors // (SEGMENTS * lanes.vectors))
    tile_pages = min(2, pages_at_once)


    def pages_of(position: Any) -> Any:
        """Pages with a segment that a window up to `position` covers."""
        return T.Cast("int64", T.max((position + 1) // SEGMENT_SIZE - 1, 0) // SEGMENTS + 1)

    def clear(pooled: Any, row: Any, kv_head: Any, begin: Any, p: Any) -> None:
        with T.serial(p - begin) as step:
            T.buffer_store(pooled, T.float32(0), [row, kv_head, begin + step])

    def multiply(scorer: Scorer, q: Any, k_means: Any, place: Any, kv_head: Any, row_of: Any, begin: Any, end: Any):
        queries = scorer.load_queries(q, kv_head, row_of)
        whole = T.Bind((end - begin) // tile_pages)
        with T.serial(whole) as step:
            scorer.multiply(queries, k_means, place, kv_head, T.Bind(begin + step * tile_pages), tile_pages)
        with T.serial(end - begin - whole * tile_pages) as step:
            scorer.multiply(queries, k_means, place, kv_head, T.Bind(begin + whole * tile_pages + step), 1)

    def prefill(n: Any, p: Any, q: Any, k_means: Any, page_tables: Any, positions: Any, pooled: Any) -> None:
        with T.parallel((n + lanes.task_rows - 1) // lanes.task_rows * num_kv_heads) as task:
            kv_head = T.Bind(task % num_kv_heads)
            start = T.Bind(task // num_kv_heads * lanes.task_rows)

            def row_of(r: int) -> Any:
                return T.min(start + r, n - 1)

            last = T.alloc_buffer((1,), "int64", scope="local")
            T.buffer_store(last, T.int64(1), [0])
            for r in range(lanes.task_rows):
                T.buffer_store(last, T.max(last[0], pages_of(positions[row_of(r)])), [0])
            pages = T.Bind(last[0])
            logits = T.alloc_buffer(((p + 1) * SEGMENTS, lanes.width), "float32")
            scorer = Scorer(lanes, head_dim, logits, 0)
            multiply(scorer, q, k_means, lambda page: page_tables[0, page], kv_head, row_of, T.int64(0), pages)
            windows, coarse = scorer.load_limits(positions, row_of)
            for v in range(lanes.vectors):
                lse = scorer.log_sum_exp(v, coarse, pages)

                def write(r: int, page: Any, score: Any) -> None:
                    T.buffer_store(pooled, score, [row_of(r), kv_head, page])

                scorer.pool(v, lse, windows, T.int64(0), pages, write)
            for r in range(lanes.task_rows):
                clear(pooled, row_of(r), kv_head, pages, p)

    def decode(n: Any, p: Any, q: Any, k_means: Any, page_tables: Any, positions: Any, pooled: Any) -> None:
        logits = T.alloc_buffer((n * num_kv_heads * (p + 1) * SEGMENTS, lanes.width), "float32")
        sums = T.alloc_buffer((n * num_kv_heads, vector.LANES), "float32")
        splits = T.Bind(T.max(T.min(p // SPLIT_PAGES, MAX_SPLITS), 1))

        def task_of(task: Any) -> tuple[Any, Any, Scorer]:
            return (
                T.Bind(task // num_kv_heads),
                T.Bind(task % num_kv_heads),
                Scorer(lanes, head_dim, logits, opaque(task * (p + 1) * SEGMENTS)),
            )

        def share(task: Any, row: Any) -> tuple[Any, Any]:
            pages = pages_of(positions[row])
            split = T.Bind(task // (n * num_kv_heads))
            return opaque(pages * split // splits), opaque(pages * (split + 1) // splits)

        with T.parallel(splits * n * num_kv_heads) as task:
            row, kv_head, scorer = task_of(T.Bind(task % (n * num_kv_heads)))
            begin, end = share(task, row)
            multiply(scorer, q, k_means, lambda page: page_tables[row, page], kv_head, lambda _: row, begin, end)
        with T.parallel(n * num_kv_heads) as task:
            row, kv_head, scorer = task_of(task)
            _, coarse = scorer.load_limits(positions, lambda _: row)
            vector.store(sums, scorer.log_sum_exp(0, coarse, pages_of(positions[row])), task, 0)
            clear(pooled, row, kv_head, pages_of(positions[row]), p)
        with T.parallel(splits * n * num_kv_heads) as task:
            whole = T.Bind(task % (n * num_kv_heads))
            row, kv_head, scorer = task_of(whole)
            begin, end = share(task, row)
            windows, _ = scorer.load_limits(positions, lambda _: row)

            def write(_: int, page: Any, score: Any) -> None:
                T.buffer_store(pooled, score, [row, kv_head, page])

            scorer.pool(0, T.Bind(vector.load(sums, whole, 0)), windows, begin, end - begin, write)

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
        k_means = T.match_buffer(k_means_handle, (num_pages, num_kv_heads, SEGMENTS, head_dim), "float32")
        page_tables = T.match_buffer(page_tables_handle, (s, p), "int32")
        positions = T.match_buffer(positions_handle, (n,), "int32")
        pooled = T.match_buffer(pooled_handle, (n, num_kv_heads, p), "float32")
        (decode if batched else prefill)(n, p, q, k_means, page_tables, positions, pooled)

    return score_blocks
