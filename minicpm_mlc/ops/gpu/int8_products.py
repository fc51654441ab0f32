"""Five and more rows of int8 activations by weights, on tensor cores: mma.m16n8k32, whose k is a
group of 32 columns.

A warp takes 32 rows of x. Two blocks of W are two tiles of 16 rows: lane 4 g + t reads columns
8 t .. 8 t + 7 of rows 4 (g % 4) .. + 3 of block g / 4, 16 bytes at a time; these are rows g and
g + 8 of both tiles. Columns of a group may come in any order that is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.base import Scheme, Terms
from minicpm_mlc.ops.gpu.int8_matrix import HELD, ROWS, Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.int8_tiles import tiled
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import accumulate, barrier, registers, shared, strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.gpu.whole_numbers import WHOLE_BITS, from_whole
from minicpm_mlc.ops.int8_sums import start_of
from minicpm_mlc.ops.tir import Buffer, Expr, T

TOKENS = 32  # rows of x that a warp takes
COLUMNS = TOKENS // 8  # tiles of 8 of them
PAIRS = HELD // 2  # of words in a group of x; the last one is its scale and sum
PAIR = 2 * LANES  # rows of two blocks
SHARE = 33  # numbers from one row of a warp's product to the next in shared memory

Write = Callable[[Expr, Expr, Expr], None]  # (row of x, row of W, product)


def products(matrix: Int8Matrix, x: Pairs, m: Expr, traits: GpuTraits, write: Write) -> None:
    """x W^T for five rows and more; `x` as pairs of words. Without tensor cores for it, by tiles in
    shared memory.
    """
    if not traits.int8_tiles or matrix.scheme.halves > 1:
        tiled(matrix, x, m, write)
        return
    with T.If(m <= TOKENS):
        with T.Then():
            ByteTiles(matrix, x, m, 1, 8, True).emit(write)
        with T.Else():
            pairs = 2 if matrix.values.bits <= 4 else 1  # so that a lane's registers suffice
            ByteTiles(matrix, x, m, pairs, 4, False).emit(write)


@dataclass(frozen=True)
class ByteTiles:
    """`pairs` of blocks for each of `warps` warps, which share the columns where there are few rows
    of x (`along_k`), else the rows.
    """

    matrix: Int8Matrix
    x: Pairs
    m: Expr
    pairs: int
    warps: int
    along_k: bool

    def emit(self, write: Write) -> None:
        """One launch."""
        tokens = TOKENS * (1 if self.along_k else self.warps)
        across = -(-self.matrix.blocks // (2 * self.pairs))
        groups = (self.m + tokens - 1) // tokens * across
        with workgroups(groups, 32 * self.warps) as (group, thread):
            warp = T.Bind(thread // 32)
            first = group // across * tokens + (0 if self.along_k else warp * TOKENS)
            lane = _Lane(self, T.Bind(first), T.Bind(group % across * (2 * self.pairs)), thread)
            steps = -(-self.matrix.groups // self.warps) if self.along_k else self.matrix.groups
            lane.groups(steps, lambda i: i * self.warps + warp if self.along_k else i)
            if self.along_k:
                self._write_sums(lane, warp, thread, write)
            else:
                self._write(lane, write)

    def _write(self, lane: _Lane, write: Write) -> None:
        for at, row, column, block in lane.places():
            token = T.Bind(lane.first + column)
            with T.If(T.And(token < self.m, block < self.matrix.blocks)), T.Then():
                write(token, T.Bind(block * LANES + row), lane.sums[at])

    def _write_sums(self, lane: _Lane, warp: Expr, thread: Expr, write: Write) -> None:
        """Over the warps, through shared memory."""
        size = PAIR * self.pairs * SHARE
        parts = shared((self.warps * size,))
        for at, row, column, block in lane.places():
            own = T.Bind((block - lane.block) * LANES + row)
            T.buffer_store(parts, lane.sums[at], [warp * size + own * SHARE + column])
        barrier()
        with strided(PAIR * self.pairs * TOKENS, thread, 32 * self.warps) as i:
            column, own = T.Bind(i // (PAIR * self.pairs)), T.Bind(i % (PAIR * self.pairs))
            token, block = T.Bind(lane.first + column), T.Bind(lane.block + own // LANES)
            with T.If(T.And(token < self.m, block < self.matrix.blocks)), T.Then():
                values = [parts[w * size + own * SHARE + column] for w in range(self.warps)]
                total = T.Bind(sum(values[1:], start=values[0]))
                write(token, T.Bind(lane.block * LANES + own), total)


class Held:
    """A lane's registers for one group of columns: of x, words of its rows and (scale, sum) of the
    rows of its sums; of W, eight words and four rows' terms a pair of blocks.
    """

    def __init__(self, pairs: int, scheme: Scheme) -> None:
        self.words, self.scales = registers(2 * COLUMNS, "int32"), registers(4 * COLUMNS, "int32")
        self.quads, self.factors = registers(8 * pairs, "uint32"), registers(4 * pairs)
        self.minimums = registers(4 * pairs) if scheme.has_minimum else None

    def keep(self, i: int, terms: Terms) -> None:
        """The i-th row's."""
        T.buffer_store(self.factors, terms.scale, [i])
        if self.minimums is not None:
            T.buffer_store(self.minimums, terms.minimum, [i])

    def terms(self, i: int) -> Terms:
        """The same again."""
        return Terms(self.factors[i], None if self.minimums is None else self.minimums[i])


class _Lane:
    """One thread of a warp: its sums over the groups of columns so far."""

    def __init__(self, tiles: ByteTiles, first: Expr, block: Expr, thread: Expr) -> None:
        """From row `first` of x and block `block` of W on."""
        self.tiles, self.first, self.block = tiles, first, block
        lane = T.Bind(thread % 32)
        self.g, self.t = T.Bind(lane // 4), T.Bind(lane % 4)
        self.q, last = T.Bind(self.g % ROWS), tiles.m - 1
        self.own = [T.Bind(block + 2 * c + self.g // ROWS) for c in range(tiles.pairs)]
        self.rows = [T.Bind(T.min(first + 8 * n + self.g, last)) for n in range(COLUMNS)]
        self.pairs = [
            [T.Bind(T.min(first + 8 * n + 2 * self.t + o, last)) for o in range(2)]
            for n in range(COLUMNS)
        ]
        self.sums = registers(tiles.pairs * 2 * COLUMNS * 4, value=0.0)

    def places(self) -> list[tuple[int, Expr, Expr, Expr]]:
        """Of each sum: where it is, its row in the block, its row of x behind `first`, the
        block.
        """
        found = []
        for c, block in enumerate(self.own):
            for i in range(2 * COLUMNS * 4):
                half, n, part = i // (4 * COLUMNS), i // 4 % COLUMNS, i % 4
                row = T.Bind(ROWS * self.q + 2 * half + part // 2)
                column = T.Bind(8 * n + 2 * self.t + part % 2)
                found.append((c * 2 * COLUMNS * 4 + i, row, column, block))
        return found

    def groups(self, steps: int, number: Callable[[Expr], Expr]) -> None:
        """Add the groups of columns number(0 .. steps - 1); those behind the last add nothing. One
        is asked for while the one before it is multiplied.
        """
        one, other = (Held(self.tiles.pairs, self.tiles.matrix.scheme) for _ in range(2))
        self._load(one, number(T.int32(0)))
        with T.serial(-(-steps // 2)) as turn:
            for held, loaded, ahead in ((one, other, 1), (other, one, 2)):
                self._load(loaded, number(turn * 2 + ahead))
                self._group(held)

    def _load(self, held: Held, number: Expr) -> None:
        """All that a group takes; zeros as scales of one behind the last."""
        matrix, x = self.tiles.matrix, self.tiles.x
        there = T.Bind(number < matrix.groups)
        g = T.Bind(T.min(number, matrix.groups - 1))
        for n in range(COLUMNS):
            pair = x[self.rows[n], g * PAIRS + self.t]
            T.buffer_store(held.words, pair, [T.ramp(2 * n, 1, 2)])
            for o, row in enumerate(self.pairs[n]):
                at, pair = 4 * n + 2 * o, x[row, g * PAIRS + PAIRS - 1]
                T.buffer_store(held.scales, pair, [T.ramp(at, 1, 2)])
                T.buffer_store(held.scales, T.Select(there, held.scales[at], 0), [at])
        for c, own in enumerate(self.own):
            block = T.Bind(T.min(own, matrix.blocks - 1))
            for i, quad in enumerate(matrix.quad_pairs(block, g, self.q, self.t)):
                for half in range(2):
                    T.buffer_store(held.quads, quad[half], [8 * c + 2 * i + half])
            for i, (terms,) in enumerate(matrix.terms_of(block, g, self.q)):
                held.keep(4 * c + i, terms)

    def _group(self, held: Held) -> None:
        """Multiply one group and add it."""
        starts = [self._start(held.scales, n) for n in range(COLUMNS)]
        for c in range(len(self.own)):
            for half in range(2):
                quads = [held.quads[8 * c + 4 * half + i] for i in range(4)]
                terms = [held.terms(4 * c + 2 * half + i) for i in range(2)]
                for n, start in enumerate(starts):
                    total = self._multiply(quads, held.words, n, start)
                    self._add(((c * 2 + half) * COLUMNS + n) * 4, total, terms, held.scales, n)

    def _start(self, scales: Buffer, n: int) -> Buffer:
        """What the integer products of 8 rows of x start from."""
        start, matrix = registers(4, "int32"), self.tiles.matrix
        for i in range(4):
            word = scales[4 * n + 2 * (i % 2) + 1]
            first = start_of(matrix.scheme, matrix.values.zero, word, 0)
            T.buffer_store(start, first + WHOLE_BITS, [i])
        return start

    def _multiply(self, quads: list[Expr], words: Buffer, n: int, start: Buffer) -> Buffer:
        """One tile: two of the lane's rows, 8 rows of x."""
        low, high, next_low, next_high = quads
        kind = "unsigned" if self.tiles.matrix.values.unsigned else "signed"
        total = registers(4, "int32")
        pointers = T.address_of(total[0]), T.address_of(start[0])
        operands = low, next_low, high, next_high, words[2 * n], words[2 * n + 1]
        tile("int32", f"multiply_bytes_{kind}", *pointers, *operands, effect=True)
        return total

    def _add(self, at: int, total: Buffer, terms: list[Terms], scales: Buffer, n: int) -> None:
        """A tile's integers to the sums from `at` on."""
        for i in range(4):
            term, word = terms[i // 2], 4 * n + 2 * (i % 2)
            part = from_whole(total[i]) * term.scale
            if term.minimum is not None:
                part = part + term.minimum * T.Cast("float32", scales[word + 1])
            accumulate(self.sums, at + i, part * T.reinterpret(scales[word], dtype="float32"))
