"""Logits of segments on tensor cores: the query heads of one key/value head are the rows of
mma.m16n8k8, eight segments its columns.

Its float32 numbers lose all but their first 11 bits; so both factors are cut in two such parts,
and three of the four products are added: what is left out is 2^-21 of a product, and has any sign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt

from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import barrier, registers, shared, store_run
from minicpm_mlc.ops.tir import Buffer, Expr, T

FOUR = 4  # components that are read at once
CHUNK = 16  # components of two tiles' columns: lane t of a quad has 4 t .. 4 t + 3
COLUMNS = 8  # segments of a tile
ROWS = 16  # of a tile: the most heads
WARPS = 4
KEPT = 0xFFFFE000  # the bits that a tile doesn't lose
ROUND = 0x1000  # half of the last of them

Read = Callable[[Buffer, Expr, Expr], None]  # (to, segment, first component)


def fits(group: int, head_dim: int) -> bool:
    """Whether there are such tiles for these heads."""
    return group <= ROWS and head_dim % CHUNK == 0


class ScoreTiles:
    """A workgroup of four warps, which share `segments` segments."""

    def __init__(self, group: int, d: int, segments: int, thread: Expr) -> None:
        self.group, self.d, self.thread = group, d, thread
        self.lane, self.warp = T.Bind(thread % 32), T.Bind(thread // 32)
        self.g, self.t = T.Bind(self.lane // 4), T.Bind(self.lane % 4)
        self.own = segments // WARPS // COLUMNS  # tiles of a warp
        self.stride = d + CHUNK  # from a head to the next: neighbours in different banks
        self.queries = [shared((group * self.stride,)) for _ in range(2)]

    def places(self) -> Iterator[tuple[int, Expr, Expr]]:
        """Of each sum of a lane: where it is, its head, its segment in the workgroup."""
        for i in range(4 * self.own):
            head = T.Bind(self.g + i // 2 % 2 * 8)
            yield i, head, T.Bind(self._segment(i // 4) + 2 * self.t + i % 2)

    def _segment(self, n: int) -> Expr:
        """The first of a tile's."""
        return (self.warp * self.own + n) * COLUMNS

    def sums(self, q: Buffer, row: Expr, head: Expr, finished: Expr, read: Read) -> Buffer:
        """The logits, for `group` heads from `head` on; zeros for segments from `finished` on."""
        means = [registers(self.d // FOUR, value=0.0) for _ in range(self.own)]
        for n, mean in enumerate(means):
            segment = T.Bind(self._segment(n) + self.g)
            with T.If(segment < finished), T.Then():
                for c in range(0, self.d, CHUNK):
                    four = registers(FOUR)
                    read(four, segment, T.Bind(c + FOUR * self.t))
                    T.buffer_store(mean, four[T.ramp(0, 1, FOUR)], [T.ramp(c // FOUR, 1, FOUR)])
        self._cut_queries(q, row, head)
        sums = registers(4 * self.own, value=0.0)
        for c in range(0, self.d, CHUNK):
            high, low = self._rows(c)
            for n, mean in enumerate(means):
                self._multiply(sums, 4 * n, high, low, [mean[c // FOUR + i] for i in range(FOUR)])
        return sums

    def _cut_queries(self, q: Buffer, row: Expr, head: Expr) -> None:
        """Both parts of the scaled queries to shared memory; the first one rounded."""
        count, threads = self.group * self.d // FOUR, 32 * WARPS
        for start in range(0, count, threads):
            i = T.Bind((start + self.thread) * FOUR)
            with T.If(start + self.thread < count), T.Then():
                four, high, low = (registers(FOUR) for _ in range(3))
                whole, own = T.ramp(0, 1, FOUR), T.Bind(i % self.d)
                vector = q[row, head + i // self.d, T.ramp(own, 1, FOUR)]
                T.buffer_store(four, vector, [whole])
                for c in range(FOUR):
                    T.buffer_store(four, four[c] * constant(1 / sqrt(self.d)), [c])
                    bits = T.reinterpret(four[c], dtype="uint32") + T.uint32(ROUND)
                    T.buffer_store(high, T.reinterpret(_cut(bits), dtype="float32"), [c])
                    T.buffer_store(low, four[c] - high[c], [c])
                at = T.Bind(i // self.d * self.stride + own)
                for part, numbers in zip(self.queries, (high, low), strict=True):
                    store_run(part, numbers, [], at)
        barrier()

    def _rows(self, c: int) -> list[Buffer]:
        """Four components of rows g and g + 8, of both parts; rows behind the group's heads repeat
        the last.
        """
        found = []
        for part in self.queries:
            held = registers(2 * FOUR)
            for half in range(2):
                head = T.min(self.g + 8 * half, self.group - 1)
                at = T.Bind(head * self.stride + c + FOUR * self.t)
                T.buffer_store(held, part[T.ramp(at, 1, FOUR)], [T.ramp(FOUR * half, 1, FOUR)])
            found.append(held)
        return found

    def _multiply(
        self, sums: Buffer, first: int, high: Buffer, low: Buffer, means: list[Expr]
    ) -> None:
        """Two tiles' columns: components 4 t and 4 t + 1 of all lanes, then 4 t + 2 and 4 t + 3."""
        for step in (0, 2):
            whole, cut, rest = means[step : step + 2], registers(2), registers(2)
            for i, mean in enumerate(whole):
                bits = _cut(T.reinterpret(mean, dtype="uint32"))
                T.buffer_store(cut, T.reinterpret(bits, dtype="float32"), [i])
                T.buffer_store(rest, mean - cut[i], [i])
            for part, other in ((low, cut), (high, rest), (high, cut)):
                rows = [part[FOUR * half + step + i] for i in range(2) for half in range(2)]
                pointer = T.address_of(sums[first])
                tile("int32", "multiply_floats", pointer, *rows, other[0], other[1], effect=True)


def _cut(bits: Expr) -> Expr:
    return T.bitwise_and(bits, T.uint32(KEPT))
