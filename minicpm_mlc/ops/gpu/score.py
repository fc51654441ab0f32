"""InfLLM-v2's choice of blocks: scores from segment means, and the selection of the best.

A score takes two walks over the means, first for the log-sum-exp of the coarse windows, then for the fine ones; logits
are computed twice instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

from tvm.script import tirx as T

from minicpm_mlc.errors import CompileError
from minicpm_mlc.ops.attend_page import LOWEST
from minicpm_mlc.ops.gpu.half import constant
from minicpm_mlc.ops.gpu.kernel import accumulate, barrier, kernel, registers, shared, strided, workgroups
from minicpm_mlc.ops.gpu.rope import pool_arguments
from minicpm_mlc.ops.gpu.sequence import Path
from minicpm_mlc.ops.rope import PAGE_SIZE
from minicpm_mlc.ops.segment_means import SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.tree import MASK_WORDS, TAIL_PAGES

THREADS = 64  # few, as each has its own sums of every head in shared memory
SMALLEST = -126 * log(2)  # a head's score below this counts as 0

Mean = Callable[[Any, Any], Any]  # (segment, component) -> f32


def score_blocks(num_heads: int, num_kv_heads: int, head_dim: int, batched: bool) -> Any:
    """PrimFunc (q f32[n, h, d], k_means f32[pages, k, 4, d], page_tables i32[s, p], positions i32[n]) -> f32[n, k, p].

    Row r uses page table r when `batched` (decode), else the only one (prefill).
    """
    group = num_heads // num_kv_heads

    def emit(dims: Any, q: Any, k_means: Any, page_tables: Any, positions: Any, pooled: Any) -> None:
        with workgroups(dims.n * num_kv_heads, THREADS) as (task, thread):
            row, kv_head = T.Bind(task // num_kv_heads), T.Bind(task % num_kv_heads)

            def mean(segment: Any, i: Any) -> Any:
                return k_means[page_tables[row if batched else 0, segment // SEGMENTS], kv_head, segment % SEGMENTS, i]

            Scorer(group, head_dim, q, row, kv_head, thread, mean).score(positions[row], dims.p, pooled)

    arguments = {
        "q": ("float32", "n", num_heads, head_dim),
        "k_means": ("float32", "num_pages", num_kv_heads, SEGMENTS, head_dim),
        "page_tables": ("int32", "s", "p"),
        "positions": ("int32", "n"),
        "pooled": ("float32", "n", num_kv_heads, "p"),
    }
    return kernel("score_blocks", arguments, emit)


def score_tree(num_heads: int, num_kv_heads: int, head_dim: int) -> Any:
    """PrimFunc (q f32[n, h, d], k_means f32[pages, k, 4, d], path_means f32[n, 2, k, 4, d], page_table i32[1, p],
    positions i32[n], base i32[m]) -> f32[n, k, p].

    Row r's means from page base[0] // 64 on are path_means[r].
    """
    group = num_heads // num_kv_heads

    def emit(dims: Any, q: Any, k_means: Any, path_means: Any, page_table: Any, positions: Any, base: Any, pooled: Any) -> None:
        with workgroups(dims.n * num_kv_heads, THREADS) as (task, thread):
            row, kv_head = T.Bind(task // num_kv_heads), T.Bind(task % num_kv_heads)
            first = T.Bind(base[0] // PAGE_SIZE)

            def mean(segment: Any, i: Any) -> Any:
                number, s = T.Bind(segment // SEGMENTS), segment % SEGMENTS
                tail = T.Bind(T.min(T.max(number - first, 0), TAIL_PAGES - 1))
                committed = T.Bind(T.min(number, T.max(first - 1, 0)))
                return T.if_then_else(
                    number < first,
                    k_means[page_table[0, committed], kv_head, s, i],
                    path_means[row, tail, kv_head, s, i],
                )

            Scorer(group, head_dim, q, row, kv_head, thread, mean).score(positions[row], dims.p, pooled)

    arguments = {
        "q": ("float32", "n", num_heads, head_dim),
        "k_means": ("float32", "num_pages", num_kv_heads, SEGMENTS, head_dim),
        "path_means": ("float32", "n", TAIL_PAGES, num_kv_heads, SEGMENTS, head_dim),
        "page_table": ("int32", 1, "p"),
        "positions": ("int32", "n"),
        "base": ("int32", "m"),
        "pooled": ("float32", "n", num_kv_heads, "p"),
    }
    return kernel("score_tree", arguments, emit)


class Scorer:
    """One row and KV head: thread t takes every 64th window, then every 64th block."""

    def __init__(self, group: int, head_dim: int, q: Any, row: Any, kv_head: Any, thread: Any, mean: Mean) -> None:
        self.group, self.head_dim, self.row, self.kv_head, self.thread = group, head_dim, row, kv_head, thread
        self.mean = mean
        self.queries, self.lse = shared((group * head_dim,)), shared((group,))
        with strided(group * head_dim, thread, THREADS) as i:
            value = q[row, kv_head * group + i // head_dim, i % head_dim]
            T.buffer_store(self.queries, value * constant(1 / sqrt(head_dim)), [i])
        barrier()

    def score(self, position: Any, pages: Any, pooled: Any) -> None:
        windows, coarse = (T.Bind((position + 1) // size - 1) for size in (SEGMENT_SIZE, PAGE_SIZE))
        self._log_sum_exp(coarse)
        seen = T.Bind(T.Select(coarse > 0, windows, 0))
        with strided(pages, self.thread, THREADS) as block:
            T.buffer_store(pooled, self._best(T.Bind(T.Cast("int32", block)), seen), [self.row, self.kv_head, block])

    def _logits(self, first: Any, segments: int) -> Any:
        """Registers with every head's logit of the mean of `segments` segments from `first` on."""
        logits = registers(self.group, value=0.0)
        with T.serial(self.head_dim) as i:
            parts = [self.mean(first + s, i) for s in range(segments)]
            mean = T.Bind(sum(parts[1:], start=parts[0]) * T.float32(1 / segments))
            for h in range(self.group):
                accumulate(logits, h, self.queries[h * self.head_dim + i] * mean)
        return logits

    def _log_sum_exp(self, coarse: Any) -> None:
        """self.lse: every head's log-sum-exp over the coarse windows, which span two pages."""
        maxima, sums = registers(self.group, value=LOWEST), registers(self.group, value=0.0)
        all_maxima, all_sums = shared((self.group * THREADS,)), shared((self.group * THREADS,))
        with strided(T.max(coarse, 0), self.thread, THREADS) as window:
            logits = self._logits(T.Bind(window * SEGMENTS), 2 * SEGMENTS)
            for h in range(self.group):
                best = T.Bind(T.max(maxima[h], logits[h]))
                T.buffer_store(sums, sums[h] * T.exp(maxima[h] - best) + T.exp(logits[h] - best), [h])
                T.buffer_store(maxima, best, [h])
        for h in range(self.group):
            T.buffer_store(all_maxima, maxima[h], [h * THREADS + self.thread])
            T.buffer_store(all_sums, sums[h], [h * THREADS + self.thread])
        barrier()
        with T.If(self.thread < self.group), T.Then():
            best, total, mine = registers(1, value=LOWEST), registers(1, value=0.0), T.Bind(self.thread * THREADS)
            with T.serial(THREADS) as t:
                T.buffer_store(best, T.max(best[0], all_maxima[mine + t]), [0])
            with T.serial(THREADS) as t:
                accumulate(total, 0, all_sums[mine + t] * T.exp(all_maxima[mine + t] - best[0]))
            T.buffer_store(self.lse, best[0] + T.log(total[0]), [self.thread])
        barrier()

    def _best(self, block: Any, windows: Any) -> Any:
        """The largest score of the five windows that touch a block; 0 where none is finished."""
        best = registers(1, value=0.0)
        with T.serial(SEGMENTS + 1) as j:
            window = T.Bind(block * SEGMENTS - 1 + j)
            with T.If(T.And(window >= 0, window < windows)), T.Then():
                logits, score = self._logits(window, 2), registers(1, value=0.0)
                for h in range(self.group):
                    exponent = T.Bind(logits[h] - self.lse[h])
                    accumulate(score, 0, T.Select(exponent < constant(SMALLEST), T.float32(0), T.exp(exponent)))
                T.buffer_store(best, T.max(best[0], score[0]), [0])
        return best[0]


def path_means(num_kv_heads: int, head_dim: int, kv_dtype: str) -> Any:
    """PrimFunc (k_pages [pages, k, d, 64], k_means f32[pages, k, 4, d], page_table i32[1, p], base i32[m],
    ancestors i32[n, 2]) -> f32[n, 2, k, 4, d]: each row's means of pages base[0] // 64 and the next, 0 where unfinished.
    """

    def emit(dims: Any, k_pages: Any, k_means: Any, page_table: Any, base: Any, ancestors: Any, out: Any) -> None:
        with workgroups(dims.n * num_kv_heads, THREADS) as (task, thread):
            row, head = T.Bind(task // num_kv_heads), T.Bind(task % num_kv_heads)
            path = Path(page_table, base, ancestors, row, thread)
            first = T.Bind(path.base // PAGE_SIZE * SEGMENTS)
            with T.serial(TAIL_PAGES * SEGMENTS) as s, strided(head_dim, thread, THREADS) as i:
                segment = T.Bind(first + s)
                mean = registers(1, value=0.0)
                with T.If((segment + 1) * SEGMENT_SIZE <= path.base):
                    with T.Then():
                        T.buffer_store(mean, k_means[page_table[0, segment // SEGMENTS], head, s % SEGMENTS, i], [0])
                    with T.Else(), T.If((segment + 1) * SEGMENT_SIZE <= path.slot + 1), T.Then():
                        place = path.page(segment // SEGMENTS)
                        with T.serial(SEGMENT_SIZE) as t:
                            page, offset = place(T.Bind(s % SEGMENTS * SEGMENT_SIZE + t))
                            accumulate(mean, 0, k_pages[page, head, i, offset])
                        T.buffer_store(mean, mean[0] * T.float32(1 / SEGMENT_SIZE), [0])
                T.buffer_store(out, mean[0], [row, s // SEGMENTS, head, s % SEGMENTS, i])

    arguments = {
        "k_pages": pool_arguments(num_kv_heads, head_dim, kv_dtype)["k_pages"],
        "k_means": ("float32", "num_pages", num_kv_heads, SEGMENTS, head_dim),
        "page_table": ("int32", 1, "p"),
        "base": ("int32", "m"),
        "ancestors": ("int32", "n", MASK_WORDS),
        "out": ("float32", "n", TAIL_PAGES, num_kv_heads, SEGMENTS, head_dim),
    }
    return kernel("path_means", arguments, emit)


def select_blocks(num_kv_heads: int, topk: int, window_blocks: int, init_blocks: int) -> Any:
    """PrimFunc (pooled f32[n, k, p], positions i32[n]) -> selected i32[n, k, topk + window_blocks].

    Scores must not be negative. Raises CompileError where topk leaves no room for the query's own block.
    """
    if topk <= init_blocks:
        raise CompileError(
            f"sparse_config: topk {topk} must exceed init_blocks {init_blocks}, or a query's own block has no place"
        )
    budget, free = topk + window_blocks, topk - init_blocks - 1

    def emit(dims: Any, pooled: Any, positions: Any, selected: Any) -> None:
        with workgroups(dims.n * num_kv_heads, THREADS) as (task, thread):
            row, head = T.Bind(task // num_kv_heads), T.Bind(task % num_kv_heads)
            own = T.Bind(positions[row] // PAGE_SIZE)
            counts = shared((THREADS,), "int32"), shared((THREADS,), "int32")  # OpenCL wants them outside of branches

            def put(place: Any, block: Any) -> None:
                T.buffer_store(selected, block, [row, head, place])

            with T.If(own < budget):
                with T.Then(), strided(budget, thread, THREADS) as place:
                    put(place, T.Select(place <= own, place, -1))
                with T.Else():
                    with strided(init_blocks, thread, THREADS) as block:
                        put(block, block)
                    with strided(window_blocks + 1, thread, THREADS) as block:
                        put(init_blocks + free + block, own - window_blocks + block)
                    if free:
                        scores = pooled, row, head
                        rest = Candidates(scores, counts, thread, init_blocks, T.Bind(own - window_blocks))
                        rest.collect(free, put)

    arguments = {
        "pooled": ("float32", "n", num_kv_heads, "p"),
        "positions": ("int32", "n"),
        "selected": ("int32", "n", num_kv_heads, budget),
    }
    return kernel("select_blocks", arguments, emit)


class Candidates:
    """The blocks begin .. end-1 of one row and head, a run of them for each thread; scores compare as their bits do.

    `scores` are the buffer, row and head, `counts` two arrays of shared memory with a number per thread.
    """

    def __init__(self, scores: tuple, counts: tuple, thread: Any, begin: int, end: Any) -> None:
        (self.pooled, self.row, self.head), self.counts = scores, counts
        self.thread, self.begin = thread, begin
        run = T.Bind((end - begin + THREADS - 1) // THREADS)
        self.first = T.Bind(T.min(begin + thread * run, end))
        self.own = T.Bind(T.min(self.first + run, end) - self.first)

    def collect(self, count: int, put: Callable[[Any, Any], None]) -> None:
        """put(place, block) for the `count` best, ascending, from place `begin` on; ties go to the lower block."""
        threshold = self._kth_largest(count)
        above, ties = registers(1, "int32", 0), registers(1, "int32", 0)
        with T.serial(self.own) as step:
            bits = self._bits(step)
            accumulate(above, 0, T.Select(bits > threshold, 1, 0))
            accumulate(ties, 0, T.Select(bits.equal(threshold), 1, 0))
        above_before, above_all = self._before(above[0], 0)
        ties_before, _ = self._before(ties[0], 1)
        wanted = T.Bind(count - above_all)  # ties
        state = registers(2, "int32")  # place, ties so far
        T.buffer_store(state, self.begin + above_before + T.min(ties_before, wanted), [0])
        T.buffer_store(state, ties_before, [1])
        with T.serial(self.own) as step:
            bits = self._bits(step)
            tie = T.Bind(bits.equal(threshold))
            chosen = T.Bind(T.Or(bits > threshold, T.And(tie, state[1] < wanted)))
            with T.If(chosen), T.Then():
                put(state[0], self.first + step)
            T.buffer_store(state, state[0] + T.Select(chosen, 1, 0), [0])
            T.buffer_store(state, state[1] + T.Select(tie, 1, 0), [1])

    def _bits(self, step: Any) -> Any:
        return T.Bind(T.reinterpret(self.pooled[self.row, self.head, self.first + step], dtype="int32"))

    def _kth_largest(self, k: int) -> Any:
        """Bits of the k-th largest score: the largest number that at least k scores reach."""
        threshold = registers(1, "int32", 0)
        with T.serial(31) as step:
            higher = T.Bind(T.bitwise_or(threshold[0], T.shift_left(1, 30 - step)))
            reach = registers(1, "int32", 0)
            with T.serial(self.own) as i:
                accumulate(reach, 0, T.Select(self._bits(i) >= higher, 1, 0))
            _, enough = self._before(reach[0], 0)
            T.buffer_store(threshold, T.Select(enough >= k, higher, threshold[0]), [0])
        return T.Bind(threshold[0])

    def _before(self, value: Any, which: int) -> tuple[Any, Any]:
        """(sum over the threads before this one, over all)."""
        counts, sums = self.counts[which], registers(2, "int32", 0)
        T.buffer_store(counts, value, [self.thread])
        barrier()
        with T.serial(THREADS) as t:
            accumulate(sums, 0, T.Select(t < self.thread, counts[t], 0))
            accumulate(sums, 1, counts[t])
        barrier()
        return T.Bind(sums[0]), T.Bind(sums[1])
