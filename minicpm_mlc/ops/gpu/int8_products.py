"""Five and more rows of int8 activations by weights, on tensor cores: few rows by warps that share
the columns, many by workgroups that share what they multiply (ops/gpu/int8_staged.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.gpu.int8_lane import TOKENS, Lane, Write, write_sums
from minicpm_mlc.ops.gpu.int8_matrix import Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.int8_staged import StagedTiles, fits
from minicpm_mlc.ops.gpu.int8_tiles import tiled
from minicpm_mlc.ops.gpu.kernel import barrier, shared, strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import Expr, T

STAGED = 128  # rows of x from which workgroups of twice as many warps fill a GPU
PAIR = 2 * LANES  # rows of two blocks


def products(matrix: Int8Matrix, x: Pairs, m: Expr, traits: GpuTraits, write: Write) -> None:
    """x W^T for five rows and more; `x` as pairs of words. Without tensor cores for it, by tiles in
    shared memory.
    """
    if not traits.int8_tiles or matrix.scheme.halves > 1:
        tiled(matrix, x, m, write)
        return
    _few(matrix, x, m, write, (TOKENS // 2, TOKENS))


def _few(matrix: Int8Matrix, x: Pairs, m: Expr, write: Write, sizes: tuple[int, ...]) -> None:
    """By warps of the first of so many rows of x that all fit into; else as many."""
    if not sizes:
        _many(matrix, x, m, write)
        return
    tokens, *larger = sizes
    with T.If(m <= tokens):
        with T.Then():
            ByteTiles(matrix, x, m, 1, 8, True, tokens).emit(write)
        with T.Else():
            _few(matrix, x, m, write, tuple(larger))


def _many(matrix: Int8Matrix, x: Pairs, m: Expr, write: Write) -> None:
    pairs = 2 if matrix.values.bits <= 4 else 1  # so that a lane's registers suffice
    direct = ByteTiles(matrix, x, m, pairs, 4, False)
    if not fits(matrix):
        direct.emit(write)
    else:
        with T.If(m <= STAGED):
            with T.Then():
                direct.emit(write)
            with T.Else():
                StagedTiles(matrix, x, m, pairs).emit(write)


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
    tokens: int = TOKENS  # rows of x that a warp takes

    def emit(self, write: Write) -> None:
        """One launch."""
        tokens = self.tokens * (1 if self.along_k else self.warps)
        across = -(-self.matrix.blocks // (2 * self.pairs))
        groups = (self.m + tokens - 1) // tokens * across
        with workgroups(groups, 32 * self.warps) as (group, thread):
            warp = T.Bind(thread // 32)
            first = group // across * tokens + (0 if self.along_k else warp * self.tokens)
            block = T.Bind(group % across * (2 * self.pairs))
            whose = self.matrix, self.x, self.m, self.pairs, T.Bind(first), block, thread
            lane = Lane(*whose, self.tokens // 8)
            steps = -(-self.matrix.groups // self.warps) if self.along_k else self.matrix.groups
            lane.groups(steps, lambda i: i * self.warps + warp if self.along_k else i)
            if self.along_k:
                self._write_sums(lane, warp, thread, write)
            else:
                write_sums(lane, self.m, write)

    def _write_sums(self, lane: Lane, warp: Expr, thread: Expr, write: Write) -> None:
        """Over the warps, through shared memory."""
        share = self.tokens + 1  # numbers from a row of a product to the next, in other banks
        size = PAIR * self.pairs * share
        parts = shared((self.warps * size,))
        for at, row, column, block in lane.places():
            own = T.Bind((block - lane.block) * LANES + row)
            T.buffer_store(parts, lane.sums[at], [warp * size + own * share + column])
        barrier()
        with strided(PAIR * self.pairs * self.tokens, thread, 32 * self.warps) as i:
            column, own = T.Bind(i // (PAIR * self.pairs)), T.Bind(i % (PAIR * self.pairs))
            token, block = T.Bind(lane.first + column), T.Bind(lane.block + own // LANES)
            with T.If(T.And(token < self.m, block < self.matrix.blocks)), T.Then():
                values = [parts[w * size + own * share + column] for w in range(self.warps)]
                total = T.Bind(sum(values[1:], start=values[0]))
                write(token, T.Bind(lane.block * LANES + own), total)
