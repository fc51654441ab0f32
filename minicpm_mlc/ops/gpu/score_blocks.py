"""InfLLM-v2's scores of blocks from segment means.

A prefill has rows enough for all workgroups: each walks its row's means twice, first for the
log-sum-exp of the coarse windows, then for the fine ones, and computes logits twice instead of
keeping them. Fewer rows: ops/gpu/score_spread.py.
"""

from __future__ import annotations

from math import sqrt

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENTS
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import (
    accumulate,
    barrier,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.score_spread import FOUR, Four, Spread
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.gpu.windows import THREADS, Mean, best_window, score_of
from minicpm_mlc.ops.score_blocks import ScoreBlocks
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T


def score_blocks(
    operator: ScoreBlocks,
    traits: GpuTraits,
    dims: Dims,
    q: Buffer,
    k_means: Buffer,
    page_tables: Buffer,
    positions: Buffer,
    pooled: Buffer,
) -> None:
    """Decode spreads each row over workgroups, prefill takes a row and key/value head each."""
    group, heads = operator.group, operator.num_kv_heads

    def means(row: Expr, kv_head: Expr) -> Mean:
        def mean(segment: Expr, i: Expr) -> Expr:
            page = page_tables[0, segment // SEGMENTS]
            return k_means[page, kv_head, segment % SEGMENTS, i]

        return mean

    def four(row: Expr, kv_head: Expr) -> Four:
        def read(to: Buffer, segment: Expr, i: Expr) -> None:
            page = T.Bind(page_tables[row, segment // SEGMENTS])
            vector = k_means[page, kv_head, segment % SEGMENTS, T.ramp(i, 1, FOUR)]
            T.buffer_store(to, vector, [T.ramp(0, 1, FOUR)])

        return read

    if operator.batched:
        Spread(dims.n, dims.p, heads, group, q, positions, pooled, four, traits.f32_tiles).emit()
        return
    with workgroups(dims.n * heads, THREADS) as (task, thread):
        row, kv_head = T.Bind(task // heads), T.Bind(task % heads)
        mean = means(row, kv_head)
        scorer = Scorer(group, operator.head_dim, q, row, kv_head, thread, mean)
        scorer.score(positions[row], dims.p, pooled)


class Scorer:
    """One row and KV head: thread t takes every 64th window, then every 64th block."""

    def __init__(
        self,
        group: int,
        head_dim: int,
        q: Buffer,
        row: Expr,
        kv_head: Expr,
        thread: Expr,
        mean: Mean,
    ) -> None:
        self.group, self.head_dim, self.row, self.kv_head, self.thread = (
            group,
            head_dim,
            row,
            kv_head,
            thread,
        )
        self.mean = mean
        self.queries, self.lse = shared((group * head_dim,)), shared((group,))
        with strided(group * head_dim, thread, THREADS) as i:
            value = q[row, kv_head * group + i // head_dim, i % head_dim]
            T.buffer_store(self.queries, value * constant(1 / sqrt(head_dim)), [i])
        barrier()

    def score(self, position: Expr, pages: Expr, pooled: Buffer) -> None:
        tokens = T.Bind(position + 1)
        self._log_sum_exp(T.Bind(tokens // PAGE_SIZE - 1))
        with strided(pages, self.thread, THREADS) as block:
            best = best_window(T.Bind(T.Cast("int32", block)), tokens, self._score)
            T.buffer_store(pooled, best, [self.row, self.kv_head, block])

    def _logits(self, first: Expr, segments: int) -> Expr:
        """Registers with every head's logit of the mean of `segments` segments from `first` on."""
        logits = registers(self.group, value=0.0)
        with T.serial(self.head_dim) as i:
            parts = [self.mean(first + s, i) for s in range(segments)]
            mean = T.Bind(sum(parts[1:], start=parts[0]) * T.float32(1 / segments))
            for h in range(self.group):
                accumulate(logits, h, self.queries[h * self.head_dim + i] * mean)
        return logits

    def _log_sum_exp(self, coarse: Expr) -> None:
        """self.lse: every head's log-sum-exp over the coarse windows, which span two pages."""
        maxima, sums = registers(self.group, value=LOWEST), registers(self.group, value=0.0)
        all_maxima, all_sums = shared((self.group * THREADS,)), shared((self.group * THREADS,))
        with strided(T.max(coarse, 0), self.thread, THREADS) as window:
            logits = self._logits(T.Bind(window * SEGMENTS), 2 * SEGMENTS)
            for h in range(self.group):
                best = T.Bind(T.max(maxima[h], logits[h]))
                T.buffer_store(
                    sums, sums[h] * T.exp(maxima[h] - best) + T.exp(logits[h] - best), [h]
                )
                T.buffer_store(maxima, best, [h])
        for h in range(self.group):
            T.buffer_store(all_maxima, maxima[h], [h * THREADS + self.thread])
            T.buffer_store(all_sums, sums[h], [h * THREADS + self.thread])
        barrier()
        with T.If(self.thread < self.group), T.Then():
            best, total, mine = (
                registers(1, value=LOWEST),
                registers(1, value=0.0),
                T.Bind(self.thread * THREADS),
            )
            with T.serial(THREADS) as t:
                T.buffer_store(best, T.max(best[0], all_maxima[mine + t]), [0])
            with T.serial(THREADS) as t:
                accumulate(total, 0, all_sums[mine + t] * T.exp(all_maxima[mine + t] - best[0]))
            T.buffer_store(self.lse, best[0] + T.log(total[0]), [self.thread])
        barrier()

    def _score(self, window: Expr) -> Expr:
        """The sum over the group's heads of a window of two segments."""
        logits, score = self._logits(window, 2), registers(1, value=0.0)
        for h in range(self.group):
            accumulate(score, 0, score_of(T.Bind(logits[h] - self.lse[h])))
        return score[0]
