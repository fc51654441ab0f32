"""A few rows of int8 activations by weights on tensor cores: every warp takes its own share of the
columns through its own part of shared memory, and meets the others once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.gpu.int8_lane import Lane, Write
from minicpm_mlc.ops.gpu.int8_matrix import Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.int8_stage import APART, STAGES, STEP, Room, Shape, Stage, Team
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import barrier, strided, workgroups
from minicpm_mlc.ops.tir import Buffer, Expr, T

TOKENS = 16  # rows of x of a workgroup
BLOCKS = 2  # of W
SHARED_WORDS = 48 * 256  # that a workgroup has on every GPU with such tensor cores
SHARE = TOKENS + 1  # numbers from a row of a product to the next, in other banks
OUTPUTS = BLOCKS * LANES * SHARE  # of a warp
assert OUTPUTS <= STAGES * TOKENS * APART, "a warp's sums take the place of its rows of x"


@dataclass(frozen=True)
class FewTiles:
    """16 rows of x by two blocks of W for each workgroup, whose warps share the columns."""

    matrix: Int8Matrix
    x: Pairs
    m: Expr

    @property
    def shape(self) -> Shape:
        """What a warp copies at once."""
        return Shape(self.matrix, TOKENS, BLOCKS)

    @property
    def warps(self) -> int:
        """As many as find room, up to 8."""
        return next(w for w in (8, 4, 2, 1) if w * STAGES * self.shape.words <= SHARED_WORDS)

    def emit(self, write: Write, start: Expr) -> None:
        """One launch, for the blocks of W from `start` on. Neighbouring workgroups read the same
        ones.
        """
        warps, steps = self.warps, self.matrix.groups // STEP
        down = T.Bind((self.m + TOKENS - 1) // TOKENS)
        across = (self.matrix.blocks - start + BLOCKS - 1) // BLOCKS
        with workgroups(down * across, 32 * warps) as (group, thread):
            warp, own = T.Bind(thread // 32), T.Bind(thread % 32)
            first, block = T.Bind(group % down * TOKENS), T.Bind(start + group // down * BLOCKS)
            lane = Lane(self.matrix, self.x, self.m, 1, first, block, thread, TOKENS // 8)
            room = Room(self.shape, warps)
            team = Team(self.x, self.m, first, block, own, 32, warp)
            one, other = Stage(room, team, 0), Stage(room, team, 1)
            one.copy(T.Bind(T.min(warp, steps - 1)))
            turns = -(-steps // warps)
            limit = 0 if steps % (2 * warps) == 0 else steps
            with T.serial(-(-turns // 2)) as turn:
                for here, ahead, step in ((one, other, 0), (other, one, 1)):
                    number = T.Bind((turn * 2 + step) * warps + warp)
                    tile("int32", "warp_copied", effect=True)  # and the other stage has been read
                    ahead.copy(T.Bind(T.min(number + warps, steps - 1)))
                    here.multiply(lane, number, limit=limit)
            tile("int32", "warp_copied", effect=True)
            barrier()  # nothing is copied or read any more
            self._write_sums(lane, _as_floats(room.x), warp, thread, write)

    def _write_sums(
        self, lane: Lane, parts: Buffer, warp: Expr, thread: Expr, write: Write
    ) -> None:
        """Over the warps."""
        for at, row, column, block in lane.places():
            own = T.Bind((block - lane.block) * LANES + row)
            T.buffer_store(parts, lane.sums[at], [warp * OUTPUTS + own * SHARE + column])
        barrier()
        across = BLOCKS * LANES
        with strided(across * TOKENS, thread, 32 * self.warps) as i:
            column, own = T.Bind(i // across), T.Bind(i % across)
            token, block = T.Bind(lane.first + column), T.Bind(lane.block + own // LANES)
            with T.If(T.And(token < self.m, block < self.matrix.blocks)), T.Then():
                values = [parts[w * OUTPUTS + own * SHARE + column] for w in range(self.warps)]
                total = T.Bind(sum(values[1:], start=values[0]))
                write(token, T.Bind(lane.block * LANES + own), total)


def _as_floats(buffer: Buffer) -> Buffer:
    """Shared int32 as float32."""
    pointer = T.Bind(T.reinterpret(buffer.data, dtype=T.handle("float32", "shared").ty))
    return T.decl_buffer(buffer.shape, "float32", data=pointer, scope="shared")
