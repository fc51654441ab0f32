"""Hundreds of rows of int8 activations by weights on tensor cores: eight warps share what they
multiply. Two groups of columns are copied to shared memory while the two before are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.base import Terms
from minicpm_mlc.ops.gpu.int8_lane import TOKENS, Held, Lane, Source, Write, write_sums
from minicpm_mlc.ops.gpu.int8_matrix import HELD, ROWS, Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import barrier, shared, workgroups
from minicpm_mlc.ops.tir import Buffer, Expr, T

STEP = 2  # groups of columns that are copied at once: whole numbers of 16 bytes of every row
DOWN, ACROSS = 4, 2  # warps along the rows of x, and of W
THREADS = 32 * DOWN * ACROSS
WIDE = 4  # words of a copy
HALVES = LANES // 2  # words of a float16 for each row of a block


def fits(matrix: Int8Matrix) -> bool:
    """Whether its groups of columns are copied in steps."""
    return matrix.groups % STEP == 0


@dataclass(frozen=True)
class StagedTiles:
    """A workgroup takes 128 rows of x; of W `pairs` of blocks for each of two columns of warps."""

    matrix: Int8Matrix
    x: Pairs
    m: Expr
    pairs: int

    def emit(self, write: Write) -> None:
        """One launch."""
        wide = 2 * self.pairs  # blocks of a warp
        across, steps = -(-self.matrix.blocks // (wide * ACROSS)), self.matrix.groups // STEP
        tokens = TOKENS * DOWN
        with workgroups((self.m + tokens - 1) // tokens * across, THREADS) as (group, thread):
            warp = T.Bind(thread // 32)
            down, right = T.Bind(warp // ACROSS), T.Bind(warp % ACROSS)
            first, block = T.Bind(group // across * tokens), T.Bind(group % across * wide * ACROSS)
            lane = Lane(
                self.matrix,
                self.x,
                self.m,
                self.pairs,
                T.Bind(first + down * TOKENS),
                T.Bind(block + right * wide),
                thread,
            )
            one, other = (_Stage(self, first, block, thread) for _ in range(2))
            one.copy(T.int32(0))
            with T.serial(-(-steps // 2)) as turn:
                for here, ahead, step in ((one, other, 0), (other, one, 1)):
                    number = T.Bind(turn * 2 + step)
                    tile("int32", "warp_copied", effect=True)
                    barrier()  # all copies are there, and the other stage has been read
                    ahead.copy(T.Bind(T.min(number + 1, steps - 1)))
                    here.multiply(lane, number, T.Bind(down * TOKENS), T.Bind(right * wide))
            write_sums(lane, self.m, write)


class _Stage:
    """Shared memory for two groups of columns: words of x row by row, of W block by block."""

    def __init__(self, tiles: StagedTiles, first: Expr, block: Expr, thread: Expr) -> None:
        self.tiles, self.first, self.block, self.thread = tiles, first, block, thread
        self.blocks = 2 * tiles.pairs * ACROSS
        self.row = STEP * HELD  # words of a row of x
        self.stored = tiles.matrix.per_group * LANES  # words of a block's group
        self.x = shared((TOKENS * DOWN * self.row,), "int32")
        self.words = shared((self.blocks * STEP * self.stored,), "uint32")
        kept = tiles.matrix.terms.words if tiles.matrix.terms.whole_words else {}
        self.terms = {name: shared((self.blocks * STEP * HALVES,), "uint32") for name in kept}

    def copy(self, step: Expr) -> None:
        """Ask for the two groups of this step."""
        tiles, matrix = self.tiles, self.tiles.matrix

        def from_x(i: Expr) -> Expr:
            row = T.Bind(T.min(self.first + i // (self.row // WIDE), tiles.m - 1))
            at = T.Bind(step * self.row + i % (self.row // WIDE) * WIDE)
            return tiles.x.words[row, at]

        def of_blocks(buffer: Buffer, each: int) -> Callable[[Expr], Expr]:
            """From a buffer with so many words of a block's group."""
            own = STEP * each // WIDE

            def source(i: Expr) -> Expr:
                block = T.Bind(T.min(self.block + i // own, matrix.blocks - 1))
                return buffer[block, T.Bind(step * STEP * each + i % own * WIDE)]

            return source

        self._copy(self.x, from_x)
        self._copy(self.words, of_blocks(matrix.words, self.stored))
        for name, held in self.terms.items():
            self._copy(held, of_blocks(matrix.terms.words[name], HALVES))

    def _copy(self, to: Buffer, source: Callable[[Expr], Expr]) -> None:
        """All of a buffer, 16 bytes of a thread at a time; source(i): where the i-th lie."""
        count = int(to.shape[0]) // WIDE
        for start in range(0, count, THREADS):
            i = T.Bind(start + self.thread)
            with T.If(i < count), T.Then():
                pointers = T.address_of(to[i * WIDE]), T.address_of(source(i))
                tile("int32", "copy_16", *pointers, 16, effect=True)

    def multiply(self, lane: Lane, step: Expr, down: Expr, right: Expr) -> None:
        """Both groups, for the rows of x from `down` on and the blocks from `right` on."""
        groups = lane.matrix.groups
        for j in range(STEP):
            number = T.Bind(step * STEP + j)
            held = Held(lane.pairs, lane.columns, lane.matrix.scheme)
            there = None if groups % (2 * STEP) == 0 else T.Bind(number < groups)
            lane.load(held, there, self._source(lane, number, j, down, right))
            lane.group(held)

    def _source(self, lane: Lane, number: Expr, j: int, down: Expr, right: Expr) -> Source:
        """The j-th of both groups."""
        matrix, g = lane.matrix, T.Bind(T.min(number, lane.matrix.groups - 1))

        def pair(row: Expr, i: Expr) -> Expr:
            return self.x[T.ramp(T.Bind((down + row) * self.row + j * HELD + 2 * i), 1, 2)]

        def start(c: int, each: int) -> Expr:
            """Where so many words of the group of a lane's block begin."""
            return ((right + 2 * c + lane.g // ROWS) * STEP + j) * each

        def quads(c: int) -> list[tuple[Expr, Expr]]:
            at = T.Bind(start(c, self.stored) + lane.q * ROWS)
            return matrix.pairs_from(self.words, at, lane.t)

        def terms(c: int) -> list[Terms]:
            if self.terms:
                at = T.Bind(start(c, HALVES) + lane.q * (ROWS // 2))
                return matrix.terms.four_from(self.terms, at)
            block = T.Bind(T.min(lane.own[c], matrix.blocks - 1))
            return [terms for (terms,) in matrix.terms_of(block, g, lane.q)]

        return Source(pair, quads, terms)
