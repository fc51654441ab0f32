"""Attention over a float16 cache on tensor cores: the query heads of one key/value head are the
rows of a 16 x 16 tile.

Each of four warps takes 16 tokens of every page, with its own maximum, sum and output; they meet
once, at the end. Queries and weights are rounded to float16. The tiles are spread over the lanes of
a warp as mma.m16n8k16 says: lane 4 g + t has rows g and g + 8, columns 2 t and 2 t + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2, sqrt
from typing import Any

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import accumulate, barrier, registers, shared, strided
from minicpm_mlc.ops.gpu.pools import Pools
from minicpm_mlc.ops.gpu.sequence import Sequence
from minicpm_mlc.ops.tir import Buffer, Expr, T

TOKENS = 16  # of a page, that a warp takes
WARPS = PAGE_SIZE // TOKENS
THREADS = 32 * WARPS
ROWS = 16  # of a tile: the most heads that share a key/value head
LEAST = -1e30  # a score, in powers of 2, of a token that a row doesn't see
WORKGROUPS = 256  # that fill a large GPU

# (head of the group, component, output before the division by the sum, maximum, sum)
Write = Callable[[Expr, Expr, Expr, Expr, Expr], None]


def fits(group: int, head_dim: int, kv: Any) -> bool:
    """Whether there are such tiles for these heads and this cache."""
    return kv is F16 and group <= ROWS and head_dim % 16 == 0 and head_dim <= 128


def most_splits(rows: Expr, kv_heads: int) -> Expr:
    """Pieces of a row that fill a GPU: what memory is asked for, so that it doesn't grow with the
    context.
    """
    return T.Bind(T.max(WORKGROUPS // (rows * kv_heads), 1))


class TileFold:
    """What one workgroup does: `page` for each of its pages, then `finish`."""

    def __init__(
        self,
        group: int,
        pools: Pools,
        q: Buffer,
        row: Expr,
        kv_head: Expr,
        sequence: Sequence,
        thread: Expr,
    ) -> None:
        self.group, self.d, self.sequence = group, pools.head_dim, sequence
        self.keys, self.values, self.kv_head = pools.keys.bits, pools.values.bits, kv_head
        self.thread, self.lane, self.warp = thread, T.Bind(thread % 32), T.Bind(thread // 32)
        self.g, self.t = T.Bind(self.lane // 4), T.Bind(self.lane % 4)
        self.words = self.d * TOKENS  # of a warp: keys, then values
        self.tiles = shared((WARPS * self.words,), "uint32")
        self.base = T.Bind(self.warp * self.words)
        self.queries = registers(self.d // 4, "uint32")
        self._load_queries(q, row)
        self.output = registers(self.d // 2, value=0.0)
        self.best, self.sum = registers(2, value=LEAST), registers(2, value=0.0)

    def _load_queries(self, q: Buffer, row: Expr) -> None:
        """Scaled so that a weight is a power of 2; rows behind the group's heads repeat the
        last.
        """
        scale = T.float32(log2(2.718281828459045) / sqrt(self.d))
        for k in range(self.d // 16):
            for i, (down, right) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
                head = self.kv_head * self.group + T.min(self.g + down, self.group - 1)
                pair = [q[row, head, k * 16 + right + 2 * self.t + o] * scale for o in (0, 1)]
                T.buffer_store(self.queries, tile("uint32", "halves_of", *pair), [4 * k + i])

    def page(self, number: Expr, visible: Expr) -> None:
        """Fold in the first `visible` tokens of the sequence's page `number`."""
        first, full = T.Bind(self.warp * TOKENS), T.Bind(visible >= PAGE_SIZE)
        self._copy(number, first, T.Bind(visible - first), full)
        scores = registers(8, value=0.0)
        self._multiply_keys(scores)
        with T.If(T.Not(full)), T.Then():
            for j in range(2):
                for i in range(4):
                    token = first + j * 8 + 2 * self.t + i % 2
                    seen = T.Select(token < visible, scores[4 * j + i], T.float32(LEAST))
                    T.buffer_store(scores, seen, [4 * j + i])
        self._rescale(scores)
        self._add_values(scores)
        tile("int32", "warp_meets", effect=True)  # before the tiles are written again

    def _copy(self, number: Expr, first: Expr, visible: Expr, full: Expr) -> None:
        """The warp's tokens into its tiles; values that are not visible as zeros, as what lies
        there may be no number.
        """
        page, in_order = self.sequence.whole_page(number)
        with T.If(full if in_order is None else T.And(full, in_order)):
            with T.Then():
                self._copy_in_order(page, first, None)
            with T.Else():
                if in_order is None:
                    self._copy_in_order(page, first, visible)
                else:
                    self._copy_each(number, first, visible)
        tile("int32", "warp_copied", effect=True)

    def _copy_in_order(self, page: Expr, first: Expr, visible: Expr | None) -> None:
        """16 bytes at a time, in an order without bank conflicts when they are read; None: all are
        visible.
        """
        for c in range(self.d // 16):
            i = T.Bind(c * 32 + self.lane)
            row, half = T.Bind(i // 2), T.Bind(i % 2)
            source = T.address_of(self.keys[page, self.kv_head, row, first + half * 8])
            self._copy_16(self._key_word(row, half), source, 16)
        across = self.d // 8
        for c in range(self.d // 16):
            i = T.Bind(c * 32 + self.lane)
            row, part = T.Bind(i // across), T.Bind(i % across)
            source = T.address_of(self.values[page, self.kv_head, first + row, part * 8])
            size = 16 if visible is None else T.Select(row < visible, 16, 0)
            self._copy_16(self._value_word(row, part), source, size)

    def _copy_16(self, word: Expr, source: Expr, size: Any) -> None:
        tile("int32", "copy_16", T.address_of(self.tiles[word]), source, size, effect=True)

    def _copy_each(self, number: Expr, first: Expr, visible: Expr) -> None:
        """Token by token, as the nodes of a tree lie in any order."""
        narrow = T.decl_buffer(
            (2 * WARPS * self.words,),
            "uint16",
            data=T.Bind(T.reinterpret(self.tiles.data, dtype=T.handle("uint16", "shared").ty)),
            scope="shared",
        )
        place = self.sequence.page(number)
        with strided(self.d * TOKENS, self.lane, 32) as i:
            token, c = T.Bind(i % TOKENS), T.Bind(i // TOKENS)
            with T.If(token < visible):
                with T.Then():
                    page, offset = place(T.Bind(first + token))
                    key = self.keys[page, self.kv_head, c, offset]
                    at = T.Bind(self._key_word(c, T.Bind(token // 8)) * 2 + token % 8)
                    T.buffer_store(narrow, key, [at])
                    value = self.values[page, self.kv_head, offset, c]
                    at = T.Bind(self._value_word(token, T.Bind(c // 8)) * 2 + c % 8)
                    T.buffer_store(narrow, value, [at])
                with T.Else():
                    at = T.Bind(self._value_word(token, T.Bind(c // 8)) * 2 + c % 8)
                    T.buffer_store(narrow, T.uint16(0), [at])

    def _key_word(self, row: Expr, half: Expr) -> Expr:
        """Where eight tokens of a component lie."""
        turned = T.bitwise_xor(half, T.bitwise_and(row // 4, 1))
        return T.Bind(self.base + row * 8 + turned * 4)

    def _value_word(self, row: Expr, part: Expr) -> Expr:
        """Where eight components of a token lie."""
        turned = T.bitwise_xor(part, T.bitwise_and(row, 7))
        return T.Bind(self.base + self.d * 8 + row * (self.d // 2) + turned * 4)

    def _multiply_keys(self, scores: Buffer) -> None:
        """Scores of 16 tokens, in two tiles of 8."""
        keys = registers(4, "uint32")
        for k in range(self.d // 16):
            row = T.Bind(k * 16 + T.bitwise_and(self.lane, 15))
            place = T.address_of(self.tiles[self._key_word(row, T.Bind(self.lane // 16))])
            tile("int32", "load_transposed", T.address_of(keys[0]), place, effect=True)
            a = [self.queries[4 * k + i] for i in range(4)]
            for j in range(2):
                _multiply(scores, 4 * j, a, keys[2 * j], keys[2 * j + 1])

    def _rescale(self, scores: Buffer) -> None:
        """Scores become weights, and what was summed before is made smaller where a maximum of the
        warp's has risen, which is seldom so after the first pages.
        """
        decays, risen = registers(2), registers(1, "int32", 0)
        for half in range(2):
            self._weigh(scores, half, decays, risen)
        with T.If(T.Bind(tile("int32", "warp_any", risen[0])) != 0), T.Then():
            for n in range(self.d // 8):
                for i in range(4):
                    at = n * 4 + i
                    T.buffer_store(self.output, self.output[at] * decays[i // 2], [at])

    def _weigh(self, scores: Buffer, half: int, decays: Buffer, risen: Buffer) -> None:
        """Scores of rows g + 8 half, and how much smaller what was summed before becomes."""
        mine = [4 * j + 2 * half + i for j in range(2) for i in range(2)]
        highest = T.max(
            T.max(scores[mine[0]], scores[mine[1]]), T.max(scores[mine[2]], scores[mine[3]])
        )
        best = T.Bind(T.max(self.best[half], tile("float32", "quad_max", highest)))
        T.buffer_store(decays, tile("float32", "power_of_2", self.best[half] - best), [half])
        T.buffer_store(risen, T.Select(best > self.best[half], 1, risen[0]), [0])
        T.buffer_store(self.best, best, [half])
        T.buffer_store(self.sum, self.sum[half] * decays[half], [half])
        for i in mine:
            T.buffer_store(scores, tile("float32", "power_of_2", scores[i] - best), [i])
            accumulate(self.sum, half, scores[i])

    def _add_values(self, scores: Buffer) -> None:
        weights = [
            T.Bind(tile("uint32", "halves_of", scores[4 * j + i], scores[4 * j + i + 1]))
            for j in range(2)
            for i in (0, 2)
        ]
        values = registers(4, "uint32")
        row = T.Bind(T.bitwise_and(self.lane, 15))
        for n in range(self.d // 16):
            place = self._value_word(row, T.Bind(n * 2 + self.lane // 16))
            source = T.address_of(self.tiles[place])
            tile("int32", "load_transposed", T.address_of(values[0]), source, effect=True)
            for j in range(2):
                _multiply(self.output, (2 * n + j) * 4, weights, values[2 * j], values[2 * j + 1])

    def finish(self, write: Write) -> None:
        """The warps' outputs, weighed by how far each maximum lies below the highest."""
        stats = shared((WARPS * 2 * ROWS,))
        for half in range(2):
            total = T.Bind(tile("float32", "quad_sum", self.sum[half]))
            with T.If(self.t.equal(0)), T.Then():
                at = T.Bind(self.warp * (2 * ROWS) + self.g + 8 * half)
                T.buffer_store(stats, self.best[half], [at])
                T.buffer_store(stats, total, [at + ROWS])
        barrier()  # the tiles have been read
        whole = T.decl_buffer(
            (WARPS * ROWS * self.d,),
            "float32",
            data=T.Bind(T.reinterpret(self.tiles.data, dtype=T.handle("float32", "shared").ty)),
            scope="shared",
        )
        for n in range(self.d // 8):
            for i in range(4):
                head = self.g + i // 2 * 8
                at = (self.warp * ROWS + head) * self.d + n * 8 + 2 * self.t + i % 2
                T.buffer_store(whole, self.output[n * 4 + i], [at])
        barrier()
        with strided(self.group * self.d, self.thread, THREADS) as i:
            head, component = T.Bind(i // self.d), T.Bind(i % self.d)
            maxima = [stats[w * (2 * ROWS) + head] for w in range(WARPS)]
            best = T.Bind(T.max(T.max(maxima[0], maxima[1]), T.max(maxima[2], maxima[3])))
            state = registers(2, value=0.0)
            for w in range(WARPS):
                weight = T.Bind(tile("float32", "power_of_2", maxima[w] - best))
                accumulate(state, 0, weight * stats[w * (2 * ROWS) + ROWS + head])
                accumulate(state, 1, weight * whole[(w * ROWS + head) * self.d + component])
            write(head, component, state[1], best, state[0])


def _multiply(sums: Buffer, first: int, a: list[Expr], b0: Expr, b1: Expr) -> None:
    """sums[first .. first + 3] += a tile times another."""
    tile("int32", "multiply_halves", T.address_of(sums[first]), *a, b0, b1, effect=True)
