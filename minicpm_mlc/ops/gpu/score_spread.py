"""Block scores where rows are few, in decode and token trees: a row's segments are spread over
workgroups.

Two launches: every segment's logits with each tile's share of the log-sum-exp over the coarse
windows, then every block's best window. A window's logit is the average of its segments' logits, so
that a mean is read once for all heads of its group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.gpu import intrinsics, score_tiles
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import (
    accumulate,
    barrier,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.windows import WINDOWS, best_window, score_of
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

FOUR = 4  # components that are read at once
THREADS = 256
FEWER = 128  # threads where each has two segments
TILE = 64  # segments, and blocks, of a workgroup
PARTS = THREADS // TILE  # threads that share a segment's, or a block's, heads
OF_EACH = TILE * PARTS // FEWER  # segments of a thread, that read a query together
ABREAST = TILE // OF_EACH
PAGES = TILE // SEGMENTS  # of a tile; the last one is the next tile's first
OWN = PAGES - 1  # pages that no other tile has, and coarse windows: one begins at each
CHUNK = 16  # components of a tile's means that lie in shared memory at once
STRIDE = CHUNK + FOUR  # from a segment to the next: neighbours in different banks
SHARERS = 16  # threads that share a head's coarse windows
AHEAD = 4  # numbers that a thread asks for before it uses the first
GROWS = 256  # pages: how much more memory is asked for at once as a context grows
Four = Callable[[Buffer, Expr, Expr], None]
Logit = tuple[Expr, Expr, Expr]  # head of the group, or one behind it; segment of the tile; logit


def scratch_bytes(rows: int, heads: int, pages: int) -> int:
    """What a call of so many rows asks for beside its arguments."""
    grown = -(-pages // GROWS) * GROWS
    return 4 * rows * heads * (grown * SEGMENTS + -(-grown // OWN))


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
    f32_tiles: bool

    @property
    def tiles(self) -> bool:
        """Whether tensor cores multiply."""
        return self.f32_tiles and score_tiles.fits(self.group, int(self.q.shape[-1]))

    def emit(self) -> None:
        heads = T.Bind(self.n * (self.num_kv_heads * self.group))
        pages = T.Bind((self.p + GROWS - 1) // GROWS * GROWS)
        logits = T.alloc_buffer((heads, pages * SEGMENTS), "float32")
        sums = T.alloc_buffer((heads, (pages + OWN - 1) // OWN), "float32")
        tiles = T.Bind((self.p + OWN - 1) // OWN)
        self._multiply(logits, sums, tiles)
        self._pool(logits, sums, tiles)

    def _multiply(self, logits: Buffer, sums: Buffer, tiles: Expr) -> None:
        """A workgroup takes a tile of a row's segments, and all heads of a key/value head."""
        group = self.group
        with workgroups(self.n * self.num_kv_heads * tiles, FEWER) as (task, thread):
            pair, first = self._task(task, tiles, T.int32(0), OWN * SEGMENTS)
            row = T.Bind(pair // self.num_kv_heads)
            finished = T.Bind((self.positions[row] + 1) // SEGMENT_SIZE)
            size = group * (TILE + SHARERS)
            if self.tiles:
                held = shared((size,))
                found = self._by_tiles(pair, first, finished, thread)
            else:
                held = shared((max(2 * TILE * STRIDE, size),))
                found = self._by_threads(pair, first, finished, held, thread)
            for head, place, logit in found:
                with T.If(head < group), T.Then():
                    T.buffer_store(held, logit, [head * TILE + place])
                    with T.If(T.And(place < OWN * SEGMENTS, first + place < finished)), T.Then():
                        T.buffer_store(logits, logit, [pair * group + head, first + place])
            barrier()
            page, tile = T.Bind(first // SEGMENTS), T.Bind(first // (OWN * SEGMENTS))
            if self.tiles:
                self._sum_by_quads(sums, tile, held, page, pair, thread)
                return
            self._coarse(held, page, row, thread)
            with T.If(thread < group), T.Then():
                total = _log_sum_exp(held, T.Bind(group * TILE + thread * SHARERS))
                T.buffer_store(sums, total, [pair * group + thread, tile])

    def _sum_by_quads(
        self, sums: Buffer, tile: Expr, held: Buffer, page: Expr, pair: Expr, thread: Expr
    ) -> None:
        """Every head's log-sum-exp over the tile's coarse windows, by the four threads of a quad:
        each has four windows, which are of five pages.
        """
        row = T.Bind(pair // self.num_kv_heads)
        finished = T.Bind((self.positions[row] + 1) // PAGE_SIZE - 1)
        for start in range(0, self.group, FEWER // FOUR):
            own, first = T.Bind(start + thread // FOUR), T.Bind(thread % FOUR * FOUR)
            begin = T.Bind(T.min(own, self.group - 1) * TILE)
            pages, four = registers(FOUR + 1), registers(FOUR)
            for i in range(FOUR + 1):
                at = T.Bind(begin + T.min(first + i, PAGES - 1) * SEGMENTS)
                T.buffer_store(four, held[T.ramp(at, 1, FOUR)], [T.ramp(0, 1, FOUR)])
                T.buffer_store(pages, (four[0] + four[1]) + (four[2] + four[3]), [i])
            logits, best = registers(FOUR), registers(1, value=LOWEST)
            for i in range(FOUR):
                logit = (pages[i] + pages[i + 1]) * T.float32(1 / (2 * SEGMENTS))
                there = T.And(first + i < OWN, page + first + i < finished)
                T.buffer_store(logits, T.Select(there, logit, T.float32(LOWEST)), [i])
                T.buffer_store(best, T.max(best[0], logits[i]), [0])
            T.buffer_store(best, intrinsics.tile("float32", "quad_max", best[0]), [0])
            total = registers(1, value=0.0)
            for i in range(FOUR):
                accumulate(total, 0, T.exp(logits[i] - best[0]))
            T.buffer_store(total, intrinsics.tile("float32", "quad_sum", total[0]), [0])
            with T.If(T.And(first.equal(0), own < self.group)), T.Then():
                T.buffer_store(sums, best[0] + T.log(total[0]), [pair * self.group + own, tile])

    def _by_tiles(self, pair: Expr, first: Expr, finished: Expr, thread: Expr) -> list[Logit]:
        """On tensor cores."""
        row, kv_head = T.Bind(pair // self.num_kv_heads), T.Bind(pair % self.num_kv_heads)
        tiles = score_tiles.ScoreTiles(self.group, int(self.q.shape[-1]), TILE, thread)
        four = self.four(row, kv_head)

        def read(to: Buffer, place: Expr, i: Expr) -> None:
            four(to, T.Bind(first + place), i)

        head, count = T.Bind(kv_head * self.group), T.Bind(finished - first)
        sums = tiles.sums(self.q, row, head, count, read)
        return [(head, place, sums[i]) for i, head, place in tiles.places()]

    def _by_threads(
        self, pair: Expr, first: Expr, finished: Expr, held: Buffer, thread: Expr
    ) -> list[Logit]:
        """A thread takes two segments and a share of the heads; means come by way of shared
        memory.
        """
        part, own = T.Bind(thread // ABREAST), -(-self.group // PARTS)
        heads = [T.Bind(T.min(part * own + h, self.group - 1)) for h in range(own)]
        products = self._products(pair, first, finished, heads, held, thread)
        barrier()  # the means have been read
        return [
            (
                T.Bind(part * own + h),
                T.Bind(thread % ABREAST + each * ABREAST),
                products[each * own + h],
            )
            for each in range(OF_EACH)
            for h in range(own)
        ]

    def _products(
        self,
        pair: Expr,
        first: Expr,
        finished: Expr,
        heads: list[Expr],
        held: Buffer,
        thread: Expr,
    ) -> Buffer:
        """The logits of the thread's segments for its `heads`; zeros for segments that are not
        finished.
        """
        d, row, kv_head = int(self.q.shape[-1]), pair // self.num_kv_heads, pair % self.num_kv_heads
        across, i = CHUNK // FOUR, T.Bind(thread % (CHUNK // FOUR) * FOUR)
        loaded = [T.Bind(thread // across + each * (FEWER // across)) for each in range(OF_EACH)]
        means = [[registers(FOUR, value=0.0) for _ in loaded] for _ in range(d // CHUNK)]
        for each, own in enumerate(loaded):
            with T.If(first + own < finished), T.Then():
                four = self.four(T.Bind(row), T.Bind(kv_head))
                for chunk, mean in enumerate(means):
                    four(mean[each], T.Bind(first + own), T.Bind(chunk * CHUNK + i))
        queries = shared((self.group * d,))
        with strided(self.group * d, thread, FEWER) as at:
            value = self.q[row, kv_head * self.group + at // d, at % d]
            T.buffer_store(queries, value * constant(1 / sqrt(d)), [at])
        products = registers(OF_EACH * len(heads), value=0.0)
        for chunk, own_means in enumerate(means):
            # two tiles take turns, so that one barrier parts a tile's writers from its readers
            tile = chunk % 2 * TILE * STRIDE
            for own, mean in zip(loaded, own_means, strict=True):
                to = T.ramp(tile + own * STRIDE + i, 1, FOUR)
                T.buffer_store(held, mean[T.ramp(0, 1, FOUR)], [to])
            barrier()
            place = tile + thread % ABREAST * STRIDE
            self._add(products, heads, held, place, queries, chunk * CHUNK)
        return products

    def _add(
        self,
        products: Buffer,
        heads: list[Expr],
        held: Buffer,
        place: Expr,
        queries: Buffer,
        begin: int,
    ) -> None:
        """The products of components begin .. begin + CHUNK - 1, which lie from `place` on."""
        d, query, whole = int(self.q.shape[-1]), registers(FOUR), T.ramp(0, 1, FOUR)
        means = [registers(FOUR) for _ in range(OF_EACH)]
        with T.serial(CHUNK // FOUR) as step:
            for each, mean in enumerate(means):
                at = place + each * ABREAST * STRIDE + step * FOUR
                T.buffer_store(mean, held[T.ramp(at, 1, FOUR)], [whole])
            for h, head in enumerate(heads):
                source = T.ramp(head * d + begin + step * FOUR, 1, FOUR)
                T.buffer_store(query, queries[source], [whole])
                for each, mean in enumerate(means):
                    for c in range(FOUR):
                        accumulate(products, each * len(heads) + h, query[c] * mean[c])

    def _coarse(self, held: Buffer, page: Expr, row: Expr, thread: Expr) -> None:
        """Behind the tile's logits: those of its coarse windows, which span two pages; the lowest
        number for windows that are not finished.
        """
        finished = T.Bind((self.positions[row] + 1) // PAGE_SIZE - 1)
        with strided(self.group * SHARERS, thread, FEWER) as i:
            head, window = T.Bind(i // SHARERS), T.Bind(i % SHARERS)
            at = T.Bind(head * TILE + T.min(window, OWN - 1) * SEGMENTS)
            parts = [held[at + s] for s in range(2 * SEGMENTS)]
            logit = sum(parts[1:], start=parts[0]) * T.float32(1 / (2 * SEGMENTS))
            there = T.And(window < OWN, page + window < finished)
            value = T.Select(there, logit, T.float32(LOWEST))
            T.buffer_store(held, value, [self.group * TILE + i])
        barrier()

    def _pool(self, logits: Buffer, sums: Buffer, tiles: Expr) -> None:
        """A thread takes a block and a share of the heads; their sums meet in shared memory."""
        across, own = (self.p + TILE - 1) // TILE, -(-self.group // PARTS)
        with workgroups(self.n * self.num_kv_heads * across, THREADS) as (task, thread):
            place, part = T.Bind(thread % TILE), T.Bind(thread // TILE)
            pair, block = self._task(task, across, place, TILE)
            row, kv_head = T.Bind(pair // self.num_kv_heads), T.Bind(pair % self.num_kv_heads)
            lse = self._all_tiles(sums, pair, tiles, thread)
            scores = shared((PARTS * WINDOWS * TILE,))
            first, last = T.Bind(block * SEGMENTS - 1), T.Bind(self.p * SEGMENTS - 1)
            mine = registers(WINDOWS, value=0.0)
            for i in range(own):
                head = T.Bind(part * own + i)
                with T.If(head < self.group), T.Then():
                    at = T.Bind(pair * self.group + head)
                    read = [
                        T.Bind(logits[at, T.max(T.min(first + s, last), 0)])
                        for s in range(WINDOWS + 1)
                    ]
                    for w in range(WINDOWS):
                        logit = (read[w] + read[w + 1]) * T.float32(0.5)
                        accumulate(mine, w, score_of(T.Bind(logit - lse[head])))
            for w in range(WINDOWS):
                T.buffer_store(scores, mine[w], [(part * WINDOWS + w) * TILE + place])
            barrier()
            with T.If(T.And(part.equal(0), block < self.p)), T.Then():

                def score(window: Expr) -> Expr:
                    """The sum over the group's heads of a window of two segments."""
                    at = (window - first) * TILE + place
                    parts = [scores[p * (WINDOWS * TILE) + at] for p in range(PARTS)]
                    return T.Bind(sum(parts[1:], start=parts[0]))

                best = best_window(block, T.Bind(self.positions[row] + 1), score)
                T.buffer_store(self.pooled, best, [row, kv_head, block])

    def _all_tiles(self, sums: Buffer, pair: Expr, tiles: Expr, thread: Expr) -> Buffer:
        """Every head's log-sum-exp over the coarse windows of all tiles, in shared memory."""
        parts, lse = shared((self.group * SHARERS,)), shared((self.group,))
        with strided(self.group * SHARERS, thread, THREADS) as i:
            head, state = T.Bind(pair * self.group + i // SHARERS), registers(2, value=0.0)
            T.buffer_store(state, T.float32(LOWEST), [0])  # maximum, sum
            most, read = T.Bind(T.Cast("int32", tiles)), registers(AHEAD)
            with T.serial((most + AHEAD * SHARERS - 1) // (AHEAD * SHARERS)) as turn:
                own = [T.Bind((turn * AHEAD + a) * SHARERS + i % SHARERS) for a in range(AHEAD)]
                for a, tile in enumerate(own):
                    value = sums[head, T.min(tile, most - 1)]
                    T.buffer_store(read, T.Select(tile < most, value, T.float32(LOWEST)), [a])
                best = registers(1)
                T.buffer_store(best, state[0], [0])
                for a in range(AHEAD):
                    T.buffer_store(best, T.max(best[0], read[a]), [0])
                T.buffer_store(state, state[1] * T.exp(state[0] - best[0]), [1])
                for a in range(AHEAD):
                    accumulate(state, 1, T.exp(read[a] - best[0]))
                T.buffer_store(state, best[0], [0])
            T.buffer_store(parts, state[0] + T.log(state[1]), [i])
        barrier()
        with T.If(thread < self.group), T.Then():
            T.buffer_store(lse, _log_sum_exp(parts, T.Bind(thread * SHARERS)), [thread])
        barrier()
        return lse

    def _task(self, task: Expr, tiles: Expr, place: Expr, size: int) -> tuple[Expr, Expr]:
        """(row and KV head as one number, place in the row) of a place in a tile of `size`."""
        across = T.Bind(T.Cast("int32", tiles))
        return T.Bind(task // across), T.Bind(task % across * size + place)


def _log_sum_exp(numbers: Buffer, begin: Expr) -> Expr:
    """Of SHARERS numbers from `begin` on."""
    best, total = registers(1, value=LOWEST), registers(1, value=0.0)
    with T.serial(SHARERS) as i:
        T.buffer_store(best, T.max(best[0], numbers[begin + i]), [0])
    with T.serial(SHARERS) as i:
        accumulate(total, 0, T.exp(numbers[begin + i] - best[0]))
    return T.Bind(best[0] + T.log(total[0]))
