"""Shared memory that a team of threads copies two groups of columns to, of rows of int8 activations
and of blocks of W, while it multiplies the two before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.base import Terms
from minicpm_mlc.ops.gpu.int8_lane import Held, Lane, Source
from minicpm_mlc.ops.gpu.int8_matrix import HELD, ROWS, Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import shared
from minicpm_mlc.ops.tir import Buffer, Expr, T

STEP = 2  # groups of columns that are copied at once: whole numbers of 16 bytes of every row
WIDE = 4  # words of a copy
ROW = STEP * HELD  # words of a row of x
APART = ROW + WIDE  # from a row to the next: eight rows' words lie in other banks
HALVES = LANES // 2  # words of a float16 for each row of a block
STAGES = 2


def fits(matrix: Int8Matrix) -> bool:
    """Whether its groups of columns are copied in steps."""
    return matrix.groups % STEP == 0


@dataclass(frozen=True)
class Shape:
    """What a team copies: so many rows of x and blocks of W."""

    matrix: Int8Matrix
    rows: int
    blocks: int

    @property
    def stored(self) -> int:
        """Words of a block's group."""
        return self.matrix.per_group * LANES

    @property
    def terms(self) -> list[str]:
        """The tensors of scales and minimums that are copied; others are read where they lie."""
        terms = self.matrix.terms
        return list(terms.words) if terms.whole_words else []

    @property
    def words(self) -> int:
        """32-bit words of a stage."""
        of_group = self.stored + HALVES * len(self.terms)
        return self.rows * APART + self.blocks * STEP * of_group


class Room:
    """The memory of all stages of `teams` teams: words of x row by row, of W block by block."""

    def __init__(self, shape: Shape, teams: int) -> None:
        count = STAGES * teams
        self.shape, self.teams = shape, teams
        self.x = shared((count * shape.rows * APART,), "int32")
        self.words = shared((count * shape.blocks * STEP * shape.stored,), "uint32")
        size = count * shape.blocks * STEP * HALVES
        self.terms = {name: shared((size,), "uint32") for name in shape.terms}


@dataclass(frozen=True)
class Team:
    """Its rows of x from `first` on and blocks of W from `block` on; `thread` of its `threads`."""

    x: Pairs
    m: Expr
    first: Expr
    block: Expr
    thread: Expr
    threads: int
    number: Expr | int = 0


class Stage:
    """One stage of a team."""

    def __init__(self, room: Room, team: Team, number: int) -> None:
        self.room, self.team, self.shape = room, team, room.shape
        self.place = number * room.teams + team.number  # among all stages of all teams

    def copy(self, step: Expr) -> None:
        """Ask for the two groups of this step."""
        team, shape = self.team, self.shape
        across = ROW // WIDE  # copies of a row

        def of_x(i: Expr) -> tuple[Expr, Expr]:
            row, part = T.Bind(i // across), T.Bind(i % across * WIDE)
            token = T.Bind(T.min(team.first + row, team.m - 1))
            to = self.room.x[self._at(shape.rows * APART) + row * APART + part]
            return to, team.x.words[token, T.Bind(step * ROW + part)]

        self._copy(shape.rows * across, of_x)
        self._copy_blocks(self.room.words, shape.matrix.words, shape.stored, step)
        for name, held in self.room.terms.items():
            self._copy_blocks(held, shape.matrix.terms.words[name], HALVES, step)

    def _at(self, size: int) -> Expr:
        """Where this stage begins in memory of so many words a stage."""
        return T.int32(self.place * size) if isinstance(self.place, int) else self.place * size

    def _copy_blocks(self, to: Buffer, source: Buffer, each: int, step: Expr) -> None:
        """From a buffer with so many words of a block's group."""
        own, blocks = STEP * each // WIDE, self.shape.blocks
        start = self._at(blocks * STEP * each)

        def of_blocks(i: Expr) -> tuple[Expr, Expr]:
            block = T.Bind(T.min(self.team.block + i // own, self.shape.matrix.blocks - 1))
            at = T.Bind(step * (STEP * each) + i % own * WIDE)
            return to[start + i * WIDE], source[block, at]

        self._copy(blocks * own, of_blocks)

    def _copy(self, count: int, each: Callable[[Expr], tuple[Expr, Expr]]) -> None:
        """So many times 16 bytes by the threads; each(i): to where the i-th go, and from where."""
        team = self.team
        for start in range(0, count, team.threads):
            i = T.Bind(start + team.thread)
            if start + team.threads <= count:
                _copy_16(*each(i))
            else:
                with T.If(i < count), T.Then():
                    _copy_16(*each(i))

    def multiply(
        self, lane: Lane, step: Expr, down: Expr | int = 0, right: Expr | int = 0, limit: int = 0
    ) -> None:
        """Both groups, for the rows of x from `down` on and the blocks from `right` on. `limit`:
        the first step of which there is nothing; 0: there is none.
        """
        there = T.Bind(step < limit) if limit else None
        for j in range(STEP):
            held = Held(lane.pairs, lane.columns, lane.matrix.scheme)
            number = T.Bind(T.min(step * STEP + j, lane.matrix.groups - 1))
            lane.load(held, there, self._source(lane, number, j, down, right))
            lane.group(held)

    def _source(self, lane: Lane, g: Expr, j: int, down: Expr | int, right: Expr | int) -> Source:
        """The j-th of both groups, which is group g."""
        matrix, room, shape = lane.matrix, self.room, self.shape
        base = self._at(shape.rows * APART)

        def pair(row: Expr, i: Expr) -> Expr:
            return room.x[T.ramp(T.Bind(base + (down + row) * APART + j * HELD + 2 * i), 1, 2)]

        def start(c: int, each: int) -> Expr:
            """Where so many words of the group of a lane's block begin."""
            own = right + 2 * c + lane.g // ROWS
            return self._at(shape.blocks * STEP * each) + (own * STEP + j) * each

        def quads(c: int) -> list[tuple[Expr, Expr]]:
            at = T.Bind(start(c, shape.stored) + lane.q * ROWS)
            return matrix.pairs_from(room.words, at, lane.t)

        def terms(c: int) -> list[Terms]:
            if room.terms:
                at = T.Bind(start(c, HALVES) + lane.q * (ROWS // 2))
                return matrix.terms.four_from(room.terms, at)
            block = T.Bind(T.min(lane.own[c], matrix.blocks - 1))
            return [terms for (terms,) in matrix.terms_of(block, g, lane.q)]

        return Source(pair, quads, terms)


def _copy_16(to: Expr, source: Expr) -> None:
    tile("int32", "copy_16", T.address_of(to), T.address_of(source), 16, effect=True)
