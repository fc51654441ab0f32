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
from minicpm_mlc.ops.gpu.intrinsics import kept, tile
from minicpm_mlc.ops.gpu.kernel import accumulate, barrier, registers, shared, strided
from minicpm_mlc.ops.gpu.pools import Pools
from minicpm_mlc.ops.gpu.sequence import Sequence
from minicpm_mlc.ops.tir import Buffer, Expr, T

TOKENS = 16  # of a page, that a warp takes
WARPS = PAGE_SIZE // TOKENS
THREADS = 32 * WARPS
HEAD_DIMS = (32, 64, 80, 96, 128)  # that tests hold to the definition
ROWS = 16  # of a tile: the most heads that share a key/value head
LEAST = -1e30  # a score, in powers of 2, of a token that a row doesn't see
SLACK = 8  # powers of 2 that a weight may be above 1: float16 has 15
WORKGROUPS = 128  # that fill a large GPU
FOUR = 4  # neighbouring components that a thread puts together
APART = 8  # numbers between two heads' outputs in shared memory, for other banks

# (head of the group, first component, some outputs from it on before the division by the sum,
# maximum, sum)
Write = Callable[[Expr, Expr, Buffer, Expr, Expr], None]


def fits(group: int, head_dim: int, kv: Any) -> bool:
    """Whether there are such tiles for these heads and this cache."""
    return kv is F16 and group <= ROWS and head_dim in HEAD_DIMS


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
        size = max(self.words, ROWS * (self.d + APART))
        self.tiles = shared((WARPS * size,), "uint32")
        self.base, across = T.Bind(self.warp * self.words), self.d // 8
        self.turns = min(across & -across, 8) - 1  # bits of a token that turn its components
        self._prepare_copies(pools)
        place, half = T.Bind(T.bitwise_and(self.lane, 15)), T.Bind(self.lane // 16)
        self.read_keys = kept(self._key_word(place, half))
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
                own = [(right + 2 * self.t + o) * (self.d // 16) + k for o in (0, 1)]
                pair = [q[row, head, component] * scale for component in own]
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
                self._copy_in_order(page, None)
            with T.Else():
                if in_order is None:
                    self._copy_in_order(page, visible)
                else:
                    self._copy_each(number, first, visible)
        tile("int32", "warp_copied", effect=True)

    def _copy_in_order(self, page: Expr, visible: Expr | None) -> None:
        """16 bytes at a time, in an order without bank conflicts when they are read; None: all are
        visible.
        """
        for place, components in self.key_copies:
            self._copy_16(place, T.address_of(self.flat_keys[page, components]), 16)
        for place, components, row in self.value_copies:
            size = 16 if visible is None else T.Select(row < visible, 16, 0)
            self._copy_16(place, T.address_of(self.flat_values[page, components]), size)

    def _prepare_copies(self, pools: Pools) -> None:
        """Where the lane's copies come from in a page of all heads, and go to: what is the same in
        every page is reckoned once.
        """
        each = self.d * PAGE_SIZE
        self.flat_keys, self.flat_values = (
            T.decl_buffer((b.shape[0], b.shape[1] * each), "uint16", data=b.data)
            for b in (pools.keys.bits, pools.values.bits)
        )
        self.key_copies = self._key_copies(T.Bind(self.kv_head * each))
        self.value_copies = self._value_copies(T.Bind(self.kv_head * each))

    def _key_copies(self, start: Expr) -> list[tuple[Expr, Expr]]:
        """(word of the tiles, place in a page): neighbouring components are a lane's."""
        row, half, steps = T.Bind(self.lane // 2), T.Bind(self.lane % 2), self.d // 16
        token = self.warp * TOKENS + half * 8
        begin = kept(T.Bind(start + row * steps * PAGE_SIZE + token))
        place = kept(self._key_word(row, half))
        return [(place + c * 16 * 8, begin + c * PAGE_SIZE) for c in range(steps)]

    def _value_copies(self, start: Expr) -> list[tuple[Expr, Expr, Expr]]:
        """(word of the tiles, place in a page, token of the warp's)."""
        across, steps = self.d // 8, self.d // 16
        if 32 % across:
            return [self._value_copy(start, T.Bind(c * 32 + self.lane)) for c in range(steps)]
        row, part = T.Bind(self.lane // across), T.Bind(self.lane % across)
        turned = T.Bind(T.bitwise_xor(part, T.bitwise_and(row, self.turns)))
        # from the middle on, so that a copy's distance fits into its instruction
        middle, more = steps // 2, 32 // across  # tokens from a copy to the next
        token = self.warp * TOKENS + row + middle * more
        begin = kept(T.Bind(start + token * self.d + part * 8))
        flips = [c * more & self.turns for c in range(steps)]
        places = {
            flip: kept(T.Bind(self._value_at(row, T.bitwise_xor(turned, flip))))
            for flip in dict.fromkeys(flips)
        }
        return [
            (
                places[flips[c]] + c * more * (self.d // 2),
                begin + (c - middle) * more * self.d,
                row + c * more,
            )
            for c in range(steps)
        ]

    def _value_copy(self, start: Expr, i: Expr) -> tuple[Expr, Expr, Expr]:
        """The i-th of a warp's, where a lane's have nothing in common."""
        row, part = T.Bind(i // (self.d // 8)), T.Bind(i % (self.d // 8))
        token = self.warp * TOKENS + row
        return self._value_word(row, part), T.Bind(start + token * self.d + part * 8), row

    def _copy_16(self, word: Expr, source: Expr, size: Any) -> None:
        tile("int32", "copy_16", T.address_of(self.tiles[word]), source, size, effect=True)

    def _copy_each(self, number: Expr, first: Expr, visible: Expr) -> None:
        """Token by token, as the nodes of a tree lie in any order."""
        narrow = T.decl_buffer(
            (2 * int(self.tiles.shape[0]),),
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
                    steps = self.d // 16
                    word = self._key_word(T.Bind(c % steps * 16 + c // steps), T.Bind(token // 8))
                    at = T.Bind(word * 2 + token % 8)
                    T.buffer_store(narrow, key, [at])
                    value = self.values[page, self.kv_head, offset, c]
                    at = T.Bind(self._value_word(token, T.Bind(c // 8)) * 2 + c % 8)
                    T.buffer_store(narrow, value, [at])
                with T.Else():
                    at = T.Bind(self._value_word(token, T.Bind(c // 8)) * 2 + c % 8)
                    T.buffer_store(narrow, T.uint16(0), [at])

    def _key_word(self, row: Expr, half: Expr) -> Expr:
        """Where eight tokens of a component lie: of 16 i + j, as tiles take them, that is component
        j d / 16 + i, so that the copies of a lane are neighbours.
        """
        turned = T.bitwise_xor(half, T.bitwise_and(row // 4, 1))
        return T.Bind(self.base + row * 8 + turned * 4)

    def _value_word(self, row: Expr, part: Expr) -> Expr:
        """Where eight components of a token lie."""
        return T.Bind(self._value_at(row, T.bitwise_xor(part, T.bitwise_and(row, self.turns))))

    def _value_at(self, row: Expr, turned: Expr) -> Expr:
        return self.base + self.d * 8 + row * (self.d // 2) + turned * 4

    def _multiply_keys(self, scores: Buffer) -> None:
        """Scores of 16 tokens, in two tiles of 8."""
        keys = registers(4, "uint32")
        for k in range(self.d // 16):
            place = T.address_of(self.tiles[self.read_keys + k * 16 * 8])
            tile("int32", "load_transposed", T.address_of(keys[0]), place, effect=True)
            a = [self.queries[4 * k + i] for i in range(4)]
            for j in range(2):
                _multiply(scores, 4 * j, a, keys[2 * j], keys[2 * j + 1])

    def _rescale(self, scores: Buffer) -> None:
        """Scores become weights. Where a row's maximum has risen by much, it counts from here on,
        and what the warp has summed is made smaller, which is seldom so after the first page.
        """
        before, risen = registers(2), registers(1, "int32", 0)
        for half in range(2):
            self._raise(scores, half, before, risen)
        with T.If(T.Bind(tile("int32", "warp_any", risen[0])) != 0), T.Then():
            for half in range(2):
                decay = T.Bind(tile("float32", "power_of_2", before[half] - self.best[half]))
                T.buffer_store(self.sum, self.sum[half] * decay, [half])
                for n in range(self.d // 8):
                    for at in (n * 4 + 2 * half, n * 4 + 2 * half + 1):
                        T.buffer_store(self.output, self.output[at] * decay, [at])
        for half in range(2):
            for i in self._own(half):
                weight = tile("float32", "power_of_2", scores[i] - self.best[half])
                T.buffer_store(scores, weight, [i])
                accumulate(self.sum, half, scores[i])

    def _own(self, half: int) -> list[int]:
        """The lane's scores of row g + 8 half."""
        return [4 * j + 2 * half + i for j in range(2) for i in range(2)]

    def _raise(self, scores: Buffer, half: int, before: Buffer, risen: Buffer) -> None:
        """The maximum of row g + 8 half; `risen` where there are sums by another one."""
        mine = [scores[i] for i in self._own(half)]
        highest = T.max(T.max(mine[0], mine[1]), T.max(mine[2], mine[3]))
        highest = T.Bind(tile("float32", "quad_max", highest))
        higher = T.Bind(highest > self.best[half] + T.float32(SLACK))
        summed = T.Bind(T.And(higher, self.sum[half] > T.float32(0)))
        T.buffer_store(risen, T.Select(summed, 1, risen[0]), [0])
        T.buffer_store(before, self.best[half], [half])
        T.buffer_store(self.best, T.Select(higher, highest, self.best[half]), [half])

    def _add_values(self, scores: Buffer) -> None:
        weights = [
            T.Bind(tile("uint32", "halves_of", scores[4 * j + i], scores[4 * j + i + 1]))
            for j in range(2)
            for i in (0, 2)
        ]
        values = registers(4, "uint32")
        row = T.Bind(T.bitwise_and(self.lane, 15))
        turned = T.bitwise_xor(self.lane // 16, T.bitwise_and(row, self.turns))
        for n in range(self.d // 16):
            place = self._value_at(row, T.bitwise_xor(turned, 2 * n & 7)) + 2 * n // 8 * 8 * 4
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
        whole, stride = self.room(), self.d + APART
        for n in range(self.d // 8):
            for half in range(2):
                head = self.warp * ROWS + self.g + half * 8
                pair = self.output[T.ramp(n * 4 + half * 2, 1, 2)]
                at = T.Bind(head * stride + n * 8 + 2 * self.t)
                T.buffer_store(whole, pair, [T.ramp(at, 1, 2)])
        barrier()
        across = self.d // FOUR
        with strided(self.group * across, self.thread, THREADS) as i:
            head, component = T.Bind(i // across), T.Bind(i % across * FOUR)
            maxima = [T.Bind(stats[w * (2 * ROWS) + head]) for w in range(WARPS)]
            best = T.Bind(T.max(T.max(maxima[0], maxima[1]), T.max(maxima[2], maxima[3])))
            total, read = registers(1, value=0.0), registers(FOUR)
            values = registers(FOUR, value=0.0)
            for w in range(WARPS):
                weight = T.Bind(tile("float32", "power_of_2", maxima[w] - best))
                accumulate(total, 0, weight * stats[w * (2 * ROWS) + ROWS + head])
                at = T.Bind((w * ROWS + head) * stride + component)
                T.buffer_store(read, whole[T.ramp(at, 1, FOUR)], [T.ramp(0, 1, FOUR)])
                for c in range(FOUR):
                    accumulate(values, c, weight * read[c])
            write(head, component, values, best, total[0])

    def room(self) -> Buffer:
        """The tiles' memory as float32, for all components of all warps' heads."""
        return T.decl_buffer(
            self.tiles.shape,
            "float32",
            data=T.Bind(T.reinterpret(self.tiles.data, dtype=T.handle("float32", "shared").ty)),
            scope="shared",
        )


def _multiply(sums: Buffer, first: int, a: list[Expr], b0: Expr, b1: Expr) -> None:
    """sums[first .. first + 3] += a tile times another."""
    tile("int32", "multiply_halves", T.address_of(sums[first]), *a, b0, b1, effect=True)
