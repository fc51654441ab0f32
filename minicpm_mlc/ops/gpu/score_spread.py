"""Block scores where rows are few, in decode and token trees: a row's segments are spread over
workgroups.

Three launches: every segment's logits, every head's log-sum-exp over the coarse windows, every
block's best window. A window's logit is the average of its segments' logits, so that a mean is read
once for all heads of its group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import (
    accumulate,
    barrier,
    reduced,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.windows import THREADS, Mean, best_window, score_of
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T


@dataclass(frozen=True)
class Spread:
    """One call: n rows of num_kv_heads * group heads, p pages of context; `mean(row, kv_head)`
    gives a row's means.
    """

    n: Expr
    p: Expr
    num_kv_heads: int
    group: int
    q: Buffer
    positions: Buffer
    pooled: Buffer
    mean: Callable[[Expr, Expr], Mean]

    def emit(self) -> None:
        heads = T.Bind(self.n * (self.num_kv_heads * self.group))
        logits = T.alloc_buffer((heads, self.p * SEGMENTS), "float32")
        sums = T.alloc_buffer((heads,), "float32")
        self._multiply(logits)
        self._log_sum_exp(logits, sums)
        self._pool(logits, sums)

    def _multiply(self, logits: Buffer) -> None:
        """A thread takes a segment."""
        head_dim, group = int(self.q.shape[-1]), self.group
        tiles = (self.p * SEGMENTS + THREADS - 1) // THREADS
        with workgroups(self.n * self.num_kv_heads * tiles, THREADS) as (task, thread):
            pair, segment = self._task(task, tiles, thread)
            row, kv_head = T.Bind(pair // self.num_kv_heads), T.Bind(pair % self.num_kv_heads)
            queries, sums = shared((group * head_dim,)), registers(group, value=0.0)
            with strided(group * head_dim, thread, THREADS) as i:
                value = self.q[row, kv_head * group + i // head_dim, i % head_dim]
                T.buffer_store(queries, value * constant(1 / sqrt(head_dim)), [i])
            barrier()
            with T.If(segment < (self.positions[row] + 1) // SEGMENT_SIZE), T.Then():
                mean = self.mean(row, kv_head)
                with T.serial(head_dim) as i:
                    value = T.Bind(mean(segment, i))
                    for h in range(group):
                        accumulate(sums, h, queries[h * head_dim + i] * value)
                for h in range(group):
                    T.buffer_store(logits, sums[h], [pair * group + h, segment])

    def _log_sum_exp(self, logits: Buffer, sums: Buffer) -> None:
        """A workgroup takes a row's head."""
        with workgroups(self.n * (self.num_kv_heads * self.group), THREADS) as (head, thread):
            row = T.Bind(head // (self.num_kv_heads * self.group))
            coarse = T.Bind((self.positions[row] + 1) // PAGE_SIZE - 1)
            state, part = registers(2, value=0.0), shared((THREADS,))  # maximum, sum
            T.buffer_store(state, T.float32(LOWEST), [0])
            with strided(T.max(coarse, 0), thread, THREADS) as window:
                parts = [logits[head, window * SEGMENTS + s] for s in range(2 * SEGMENTS)]
                logit = T.Bind(sum(parts[1:], start=parts[0]) * T.float32(1 / (2 * SEGMENTS)))
                best = T.Bind(T.max(state[0], logit))
                T.buffer_store(state, state[1] * T.exp(state[0] - best) + T.exp(logit - best), [1])
                T.buffer_store(state, best, [0])
            highest = reduced(T.max, part, state[0], thread)
            total = reduced(lambda a, b: a + b, part, state[1] * T.exp(state[0] - highest), thread)
            with T.If(thread.equal(0)), T.Then():
                T.buffer_store(sums, highest + T.log(total), [head])

    def _pool(self, logits: Buffer, sums: Buffer) -> None:
        """A thread takes a block."""
        tiles = (self.p + THREADS - 1) // THREADS
        with workgroups(self.n * self.num_kv_heads * tiles, THREADS) as (task, thread):
            pair, block = self._task(task, tiles, thread)
            row, kv_head = T.Bind(pair // self.num_kv_heads), T.Bind(pair % self.num_kv_heads)
            with T.If(block < self.p), T.Then():

                def score(window: Expr) -> Expr:
                    """The sum over the group's heads of a window of two segments."""
                    total = registers(1, value=0.0)
                    with T.serial(self.group) as h:
                        head = T.Bind(pair * self.group + h)
                        logit = (logits[head, window] + logits[head, window + 1]) * T.float32(0.5)
                        accumulate(total, 0, score_of(logit - sums[head]))
                    return total[0]

                best = best_window(block, T.Bind(self.positions[row] + 1), score)
                T.buffer_store(self.pooled, best, [row, kv_head, block])

    def _task(self, task: Expr, tiles: Expr, thread: Expr) -> tuple[Expr, Expr]:
        """(row and KV head as one number, place in the row) of a thread."""
        across = T.Bind(T.Cast("int32", tiles))
        return T.Bind(task // across), T.Bind(task % across * THREADS + thread)
