"""Five and more rows of int8 activations by weights, on tensor cores: few rows by warps that share
the columns (ops/gpu/int8_few.py), hundreds by workgroups that share what they multiply
(ops/gpu/int8_staged.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.gpu.attend_tiles import WORKGROUPS
from minicpm_mlc.ops.gpu.int8_few import FewTiles
from minicpm_mlc.ops.gpu.int8_lane import TOKENS, Lane, Write, write_sums
from minicpm_mlc.ops.gpu.int8_matrix import Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.int8_stage import fits
from minicpm_mlc.ops.gpu.int8_staged import MOST, StagedTiles
from minicpm_mlc.ops.gpu.int8_tiles import tiled
from minicpm_mlc.ops.gpu.kernel import workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import Expr, T

FEW = 32  # rows of x that warps with a share of the columns take
WARPS = 4  # of a workgroup that shares nothing
STAGED = 128  # rows of x from which workgroups of twice as many warps fill a GPU
SLACK = WORKGROUPS // 4  # workgroups that don't fill a GPU again


def products(matrix: Int8Matrix, x: Pairs, m: Expr, traits: GpuTraits, write: Write) -> None:
    """x W^T for five rows and more; `x` as pairs of words. Without tensor cores for it, by tiles in
    shared memory.
    """
    if not traits.int8_tiles or matrix.scheme.halves > 1:
        tiled(matrix, x, m, write)
        return
    pairs = 2 if matrix.values.bits <= 4 else 1  # so that a lane's registers suffice
    direct = ByteTiles(matrix, x, m, pairs)
    if not fits(matrix):
        direct.emit(write)
        return
    staged = StagedTiles(matrix, x, m, pairs)
    across = T.Bind(_in_whole_waves(m, staged.across))
    with T.If(m > STAGED), T.Then():
        staged.emit(write, across)
    with T.If(T.And(m > FEW, m <= STAGED)), T.Then():
        direct.emit(write)
    rest = T.Select(m <= STAGED, matrix.blocks, across * staged.wide)
    start = T.Bind(T.Select(m <= FEW, 0, rest))
    with T.If(start < matrix.blocks), T.Then():
        FewTiles(matrix, x, m).emit(write, start)


def _in_whole_waves(m: Expr, across: int) -> Expr:
    """Of `across` workgroups for each 128 rows of x, how many fill a GPU, if those behind them are
    few: they would take as long as all others, and are made smaller.
    """
    down = T.Bind((m + MOST - 1) // MOST)
    whole = T.Bind(down * across // WORKGROUPS * WORKGROUPS // down)
    few = T.And(whole > 0, (across - whole) * down <= SLACK)
    return T.Select(few, whole, across)


@dataclass(frozen=True)
class ByteTiles:
    """`pairs` of blocks for a workgroup, whose four warps share the rows of x."""

    matrix: Int8Matrix
    x: Pairs
    m: Expr
    pairs: int

    def emit(self, write: Write) -> None:
        """One launch."""
        tokens, across = TOKENS * WARPS, -(-self.matrix.blocks // (2 * self.pairs))
        groups = (self.m + tokens - 1) // tokens * across
        with workgroups(groups, 32 * WARPS) as (group, thread):
            first = T.Bind(group // across * tokens + thread // 32 * TOKENS)
            block = T.Bind(group % across * (2 * self.pairs))
            lane = Lane(self.matrix, self.x, self.m, self.pairs, first, block, thread)
            lane.groups(self.matrix.groups, lambda i: i)
            write_sums(lane, self.m, write)
