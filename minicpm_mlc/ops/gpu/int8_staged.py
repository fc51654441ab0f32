"""Hundreds of rows of int8 activations by weights on tensor cores: eight warps share what they
multiply.
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.gpu.int8_lane import TOKENS, Lane, Write, write_sums
from minicpm_mlc.ops.gpu.int8_matrix import Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.int8_stage import STEP, Room, Shape, Stage, Team
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import barrier, workgroups
from minicpm_mlc.ops.tir import Expr, T

DOWN, ACROSS = 4, 2  # warps along the rows of x, and of W
THREADS = 32 * DOWN * ACROSS
MOST = TOKENS * DOWN  # rows of x of a workgroup


@dataclass(frozen=True)
class StagedTiles:
    """A workgroup takes 128 rows of x; of W `pairs` of blocks for each of two columns of warps."""

    matrix: Int8Matrix
    x: Pairs
    m: Expr
    pairs: int

    @property
    def wide(self) -> int:
        """Blocks of a workgroup."""
        return 2 * self.pairs * ACROSS

    @property
    def across(self) -> int:
        """Workgroups that all of W takes."""
        return -(-self.matrix.blocks // self.wide)

    def emit(self, write: Write, across: Expr) -> None:
        """One launch, for the first `across` workgroups' columns of W."""
        steps, down_all = self.matrix.groups // STEP, (self.m + MOST - 1) // MOST
        with workgroups(down_all * across, THREADS) as (group, thread):
            warp = T.Bind(thread // 32)
            down, right = T.Bind(warp // ACROSS * TOKENS), T.Bind(warp % ACROSS * 2 * self.pairs)
            first, block = T.Bind(group // across * MOST), T.Bind(group % across * self.wide)
            whose = self.matrix, self.x, self.m, self.pairs
            lane = Lane(*whose, T.Bind(first + down), T.Bind(block + right), thread)
            room = Room(Shape(self.matrix, MOST, self.wide), 1)
            team = Team(self.x, self.m, first, block, thread, THREADS)
            one, other = Stage(room, team, 0), Stage(room, team, 1)
            one.copy(T.int32(0))
            with T.serial(-(-steps // 2)) as turn:
                for here, ahead, step in ((one, other, 0), (other, one, 1)):
                    number = T.Bind(turn * 2 + step)
                    tile("int32", "warp_copied", effect=True)
                    barrier()  # all copies are there, and the other stage has been read
                    ahead.copy(T.Bind(T.min(number + 1, steps - 1)))
                    here.multiply(lane, number, down, right, steps if steps % 2 else 0)
            write_sums(lane, self.m, write)
