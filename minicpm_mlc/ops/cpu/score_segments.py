"""The walks of sparse attention's first stage over one task's segments: logits, log-sum-exp,
scores, pooled maximum.

The heads of a group lie in the lanes of a vector, so that a mean is read once for all of them and
the softmax over windows needs no reduction. The logits, a vector per segment, are scratch that all
walks share: 64 bytes a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import e, log2, sqrt

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T


@dataclass(frozen=True)
class Lanes:
    """Lane l of vector v holds row v * rows + l % rows and head l // rows of a group; heads past it
    are padding.

    `rows`: query rows in one vector, a power of two; `vectors`: of one task; `pages`: whose means
    are multiplied at once, as many as the registers hold sums for.
    """

    group: int
    rows: int
    vectors: int
    pages: int

    @staticmethod
    def of(group: int, batched: bool, traits: CpuTraits) -> Lanes:
        """Decode has a row per task; prefill packs as many as fit, since they share the means they
        read.
        """
        if group > vector.LANES:
            raise CompileError(
                f"{group} query heads share a KV head; sparse attention takes at most "
                f"{vector.LANES}"
            )
        pages = 2 if traits.accumulators >= 2 * SEGMENTS else 1
        if batched:
            return Lanes(group, 1, 1, pages)
        padded = 1 << (group - 1).bit_length()
        vectors = max(1, traits.accumulators // SEGMENTS)
        return Lanes(group, vector.LANES // padded, vectors, pages)

    @property
    def task_rows(self) -> int:
        return self.rows * self.vectors

    @property
    def width(self) -> int:
        return self.vectors * vector.LANES

    def place(self, lane: int) -> tuple[int, int]:
        """(row of the task, head of the group) of a lane of the task's vectors."""
        return lane // vector.LANES * self.rows + lane % self.rows, lane % vector.LANES // self.rows

    def of_rows(self, vectors: Buffer, v: int) -> Expr:
        """The lanes of vector v that belong to its rows' first heads: a scalar when it has one
        row.
        """
        at = v * vector.LANES
        return vectors[T.ramp(at, 1, self.rows) if self.rows > 1 else at]

    def per_row(self, scalar: Expr) -> Expr:
        """The scalar in one lane per row."""
        return T.broadcast(scalar, self.rows) if self.rows > 1 else scalar

    def row(self, value: Expr, r: int) -> Expr:
        """Row r's lane of a value with one lane per row."""
        return T.Shuffle([value], [r]) if self.rows > 1 else value


@dataclass(frozen=True)
class Scorer:
    """One task's logits f32[segments, width]: half of mean . query / sqrt(d) in units of log2, from
    `base` on.
    """

    lanes: Lanes
    logits: Buffer
    base: Expr

    def at(self, page: Expr, segment: int, v: int) -> Expr:
        """The logits of one segment for vector v; segment 4 is the next page's first."""
        return vector.load(self.logits, self.base + page * SEGMENTS + segment, v * vector.LANES)

    def load_queries(self, q: Buffer, rows: list[Expr], kv_head: Expr) -> Buffer:
        """f32[d, width], scaled so that the sum of two logits is a window's."""
        head_dim, group = int(q.shape[-1]), self.lanes.group
        queries = T.alloc_buffer((head_dim, self.lanes.width), "float32")
        with T.serial(head_dim) as i:
            for lane in range(self.lanes.width):
                row, head = self.lanes.place(lane)
                value = q[rows[row], kv_head * group + min(head, group - 1), i]
                T.buffer_store(queries, value * T.float32(log2(e) / sqrt(head_dim) / 2), [i, lane])
        return queries

    def load_limits(self, positions: Buffer, rows: list[Expr]) -> tuple[Buffer, Buffer]:
        """i32[width] each: the windows, and the coarse windows, that a lane's row sees; padding
        sees no coarse ones.
        """
        windows = T.alloc_buffer((self.lanes.width,), "int32")
        coarse = T.alloc_buffer((self.lanes.width,), "int32")
        for lane in range(self.lanes.width):
            row, head = self.lanes.place(lane)
            tokens = T.Bind(positions[rows[row]] + 1)
            T.buffer_store(windows, tokens // SEGMENT_SIZE - 1, [lane])
            T.buffer_store(
                coarse, tokens // PAGE_SIZE - 1 if head < self.lanes.group else 0, [lane]
            )
        return windows, coarse

    def multiply(
        self,
        queries: Buffer,
        means: Callable[[int, int, Expr], Expr],
        page: Expr,
        pages: int,
        fetch: Callable[[Expr], None] = lambda line: None,
    ) -> None:
        """Logits of the pages page .. page + pages - 1; means(p, s, i) is component i of a segment
        of page + p.

        fetch(line) asks for one cache line, of the d / 4 that a page's means fill, of what is read
        later.
        """
        vectors = range(0, self.lanes.width, vector.LANES)
        segments = list(product(range(pages), range(SEGMENTS)))
        tile = {segment: vector.registers(len(vectors)) for segment in segments}
        for segment, v in product(segments, vectors):
            vector.store(tile[segment], vector.splat(0.0), v)
        with T.serial(queries.shape[0] // SEGMENTS) as line:
            fetch(line)
            for i in (T.Bind(line * SEGMENTS + step) for step in range(SEGMENTS)):
                columns = [T.Bind(vector.load(queries, i, v)) for v in vectors]
                for segment in segments:
                    mean = T.Bind(vector.splat(means(*segment, i)))
                    for v, column in zip(vectors, columns, strict=True):
                        total = vector.load(tile[segment], v) + column * mean
                        vector.store(tile[segment], total, v)
        for (p, s), v in product(segments, vectors):
            total = vector.load(tile[p, s], v)
            vector.store(self.logits, total, self.base + (page + p) * SEGMENTS + s, v)

    def each_coarse_window(
        self, v: int, pages: Expr, limit: Expr, visit: Callable[[Expr, Expr], None]
    ) -> None:
        """visit(logits, mask of the lanes that see it) for each window of two pages."""
        with T.serial(pages - 1) as page:
            values = [self.at(page, s, v) for s in range(2 * SEGMENTS)]
            while len(values) > 1:
                values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
            seen = T.broadcast(T.Cast("int32", page), vector.LANES) < limit
            visit(T.Bind(values[0] * vector.splat(1 / SEGMENTS)), seen)

    def log_sum_exp(self, v: int, coarse: Buffer, pages: Expr) -> Expr:
        """log2 of the sum of exp2 over the coarse windows that each lane of vector v sees; 3e38
        where it sees none.
        """
        limit = T.Bind(coarse[T.ramp(v * vector.LANES, 1, vector.LANES)])
        highest, total = vector.registers(1), vector.registers(1)
        vector.store(highest, vector.splat(LOWEST), 0)
        vector.store(total, vector.splat(0.0), 0)

        def raise_highest(x: Expr, seen: Expr) -> None:
            vector.store(
                highest, T.max(vector.load(highest, 0), T.Select(seen, x, vector.splat(LOWEST))), 0
            )

        def add(x: Expr, seen: Expr) -> None:
            power = vector.exp2(x - vector.load(highest, 0))
            vector.store(total, vector.load(total, 0) + T.Select(seen, power, vector.splat(0.0)), 0)

        self.each_coarse_window(v, pages, limit, raise_highest)
        self.each_coarse_window(v, pages, limit, add)
        value = vector.load(highest, 0) + log2_of(
            T.Bind(T.max(vector.load(total, 0), vector.splat(1.0)))
        )
        return T.Bind(T.Select(limit > T.broadcast(0, vector.LANES), value, vector.splat(-LOWEST)))

    def score(self, v: int, lse: Expr, limit: Expr, page: Expr, s: int) -> Expr:
        """Score of window 4 page + s, one lane per row: exponentials summed over the heads; 0 from
        `limit` on.
        """
        power = vector.in_order(vector.exp2(self.at(page, s, v) + self.at(page, s + 1, v) - lse))
        seen = self.lanes.per_row(T.Cast("int32", page * SEGMENTS + s)) < limit
        total = vector.fold(lambda a, b: a + b, power, self.lanes.rows)
        return T.Bind(T.Select(seen, total, self.lanes.per_row(T.float32(0))))

    def pool(
        self,
        v: int,
        lse: Expr,
        windows: Buffer,
        begin: Expr,
        end: Expr,
        write: Callable[[int, Expr, Expr], None],
    ) -> None:
        """write(row, page, score) for the pages begin .. end - 1 and each row of vector v.

        A block's score is the largest of its four windows and of the one before, which reaches into
        it.
        """
        rows = self.lanes.rows
        limit = T.Bind(self.lanes.of_rows(windows, v))
        previous = T.alloc_buffer((rows,), "float32")
        whole = T.ramp(0, 1, rows) if rows > 1 else 0
        T.buffer_store(previous, self.lanes.per_row(T.float32(0)), [whole])
        with T.If(begin > 0), T.Then():
            T.buffer_store(previous, self.score(v, lse, limit, begin - 1, SEGMENTS - 1), [whole])
        with T.serial(end - begin) as step:
            page = T.Bind(begin + step)
            scores = [self.score(v, lse, limit, page, s) for s in range(SEGMENTS)]
            best = T.Bind(
                T.max(
                    T.max(T.max(scores[0], scores[1]), T.max(scores[2], scores[3])), previous[whole]
                )
            )
            T.buffer_store(previous, scores[-1], [whole])
            for r in range(rows):
                write(v * rows + r, page, self.lanes.row(best, r))


def log2_of(x: Expr) -> Expr:
    """log2 of lanes >= 1 by Newton's method on exp2, from the exponent and mantissa as a guess (off
    by <= 0.09).

    A loop, because TVM's simplifier expands the nested expression without end.
    """
    guess = vector.registers(1)
    bits = T.Cast("float32x16", T.reinterpret(x, dtype="int32x16"))
    vector.store(guess, bits * vector.splat(2.0**-23) - vector.splat(127.0), 0)
    with T.serial(3):
        y = T.Bind(vector.load(guess, 0))
        vector.store(
            guess, y + (x * vector.exp2(-y) - vector.splat(1.0)) * vector.splat(log2(e)), 0
        )
    return vector.load(guess, 0)
