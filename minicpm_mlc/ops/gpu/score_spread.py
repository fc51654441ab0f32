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
from minicpm_mlc.ops.gpu.windows import THREADS, WINDOWS, best_window, score_of
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

FOUR = 4  # components that are read at once
AHEAD = 4  # of these, asked for before the first is used
WIDE = 256  # threads where each has few numbers
POOLED = 64  # blocks of a workgroup
PARTS = WIDE // POOLED  # threads that share a block's heads
GROWS = 256  # pages: how much more memory is asked for at once as a context grows
Four = Callable[[Buffer, Expr, Expr], None]


@dataclass(frozen=True)
class Spread:
    """One call: n rows of num_kv_heads * group heads, p pages of context;
    `four(row, kv_head)(registers, segment, i)` loads components i .. i + 3 of one.
    """

    n: Expr
    p: Expr
    num_kv_heads: int
    group: int
    q: Buffer
    positions: Buffer
    pooled: Buffer
    four: Callable[[Expr, Expr], Four]

    def emit(self) -> None:
        heads = T.Bind(self.n * (self.num_kv_heads * self.group))
        pages = T.Bind((self.p + GROWS - 1) // GROWS * GROWS)
        logits = T.alloc_buffer((heads, pages * SEGMENTS), "float32")
        sums = T.alloc_buffer((heads,), "float32")
        self._multiply(logits)
        self._log_sum_exp(logits, sums)
        self._pool(logits, sums)

    def _multiply(self, logits: Buffer) -> None:
        """A thread takes a segment, four components at a time."""
        head_dim, group = int(self.q.shape[-1]), self.group
        tiles = (self.p * SEGMENTS + THREADS - 1) // THREADS
        with workgroups(self.n * self.num_kv_heads * tiles, THREADS) as (task, thread):
            pair, segment = self._task(task, tiles, thread, THREADS)
            row, kv_head = T.Bind(pair // self.num_kv_heads), T.Bind(pair % self.num_kv_heads)
            queries, sums = shared((group * head_dim,)), registers(group, value=0.0)
            with strided(group * head_dim, thread, THREADS) as i:
                value = self.q[row, kv_head * group + i // head_dim, i % head_dim]
                T.buffer_store(queries, value * constant(1 / sqrt(head_dim)), [i])
            barrier()
            with T.If(segment < (self.positions[row] + 1) // SEGMENT_SIZE), T.Then():
                four = self.four(row, kv_head)
                ahead = next(a for a in (AHEAD, 1) if head_dim % (a * FOUR) == 0)
                means, weights = [registers(FOUR) for _ in range(ahead)], registers(FOUR)
                with T.serial(head_dim // FOUR // ahead) as step:
                    at = [T.Bind((step * ahead + a) * FOUR) for a in range(ahead)]
                    for to, i in zip(means, at, strict=True):
                        four(to, segment, i)
                    for mean, i in zip(means, at, strict=True):
                        for h in range(group):
                            source = queries[T.ramp(h * head_dim + i, 1, FOUR)]
                            T.buffer_store(weights, source, [T.ramp(0, 1, FOUR)])
                            for c in range(FOUR):
                                accumulate(sums, h, weights[c] * mean[c])
                for h in range(group):
                    T.buffer_store(logits, sums[h], [pair * group + h, segment])

    def _log_sum_exp(self, logits: Buffer, sums: Buffer) -> None:
        """A workgroup takes a row's head."""
        with workgroups(self.n * (self.num_kv_heads * self.group), WIDE) as (head, thread):
            row = T.Bind(head // (self.num_kv_heads * self.group))
            coarse = T.Bind((self.positions[row] + 1) // PAGE_SIZE - 1)
            state, part = registers(2, value=0.0), shared((WIDE,))  # maximum, sum
            T.buffer_store(state, T.float32(LOWEST), [0])
            with strided(T.max(coarse, 0), thread, WIDE) as window:
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
        """A thread takes a block and a share of the heads; their sums meet in shared memory."""
        tiles, own = (self.p + POOLED - 1) // POOLED, -(-self.group // PARTS)
        with workgroups(self.n * self.num_kv_heads * tiles, WIDE) as (task, thread):
            place, part = T.Bind(thread % POOLED), T.Bind(thread // POOLED)
            pair, block = self._task(task, tiles, place, POOLED)
            row, kv_head = T.Bind(pair // self.num_kv_heads), T.Bind(pair % self.num_kv_heads)
            scores = shared((PARTS * WINDOWS * POOLED,))
            first, last = T.Bind(block * SEGMENTS - 1), T.Bind(self.p * SEGMENTS - 1)
            mine = registers(WINDOWS, value=0.0)
            for i in range(own):
                head = T.Bind(part * own + i)
                with T.If(head < self.group), T.Then():
                    at = T.Bind(pair * self.group + head)
                    lse = T.Bind(sums[at])
                    read = [
                        T.Bind(logits[at, T.max(T.min(first + s, last), 0)])
                        for s in range(WINDOWS + 1)
                    ]
                    for w in range(WINDOWS):
                        logit = (read[w] + read[w + 1]) * T.float32(0.5)
                        accumulate(mine, w, score_of(T.Bind(logit - lse)))
            for w in range(WINDOWS):
                T.buffer_store(scores, mine[w], [(part * WINDOWS + w) * POOLED + place])
            barrier()
            with T.If(T.And(part.equal(0), block < self.p)), T.Then():

                def score(window: Expr) -> Expr:
                    """The sum over the group's heads of a window of two segments."""
                    at = (window - first) * POOLED + place
                    parts = [scores[p * (WINDOWS * POOLED) + at] for p in range(PARTS)]
                    return T.Bind(sum(parts[1:], start=parts[0]))

                best = best_window(block, T.Bind(self.positions[row] + 1), score)
                T.buffer_store(self.pooled, best, [row, kv_head, block])

    def _task(self, task: Expr, tiles: Expr, place: Expr, size: int) -> tuple[Expr, Expr]:
        """(row and KV head as one number, place in the row) of a place in a tile of `size`."""
        across = T.Bind(T.Cast("int32", tiles))
        return T.Bind(task // across), T.Bind(task % across * size + place)
