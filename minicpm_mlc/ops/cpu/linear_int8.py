"""linear with int8 activations: integer dot products per group of 32 columns, scaled and summed in
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.int8_dot import DOTS, Activations, Int8Dot
from minicpm_mlc.ops.cpu.linear import arguments_of, require_whole_residual
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.cpu.weight_table import WeightTable
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme, Stored, Terms
from minicpm_mlc.ops.formats.weights.packing import blocks_of
from minicpm_mlc.ops.formats.weights.values import REGISTERS
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.quantize_rows import SCALE, SUM
from minicpm_mlc.ops.tir import Buffer, Expr

CACHE_GROUPS = 32  # column groups at a time: 16 packed rows and a tile of x stay in L1
CACHE_ROWS = 128  # x rows at a time: 160 KiB of CACHE_GROUPS stay in L2
# Weight blocks of one task lie far apart: to one row, memory delivers 15 % more in two streams than
# in one. Prefetching is worth 30 % for 8 and 16 rows, each of two streams a quarter as far ahead.
FEW_TILES = 7  # of rows: these unpack weights as they go, as a table costs more than it spares


BlockAt = Callable[
    [Expr], tuple[Expr, Expr]
]  # of a task's i-th stream: its weight block, and the column of its totals


def linear_int8(
    operator: LinearInt8, traits: CpuTraits, dims: Dims, x: Buffer, *rest: Buffer
) -> None:
    """Raises CompileError for shapes that don't fit the layout, and for words that the processor's
    products can't take.
    """
    require_whole_residual(operator)
    loops = Int8Loops(operator.n, operator.k, operator.scheme, dot_of(operator, traits), traits)
    loops.m, loops.x, loops.scale = dims.m, x, operator.scale
    loops.stored, loops.residual, loops.totals = arguments_of(operator, rest)
    loops.emit()


def dot_of(operator: LinearInt8 | LinearSwigluInt8, traits: CpuTraits) -> Int8Dot:
    """The dot products of the processor. Raises CompileError where they can't take the operator's
    words.
    """
    if traits.int8_dot is None or not operator.fits(traits):
        raise CompileError(
            f"{operator.name}: products of {traits.int8_dot} need another factor of sums than "
            f"{operator.sum_factor} beside weights of {operator.scheme.name}"
        )
    return DOTS[traits.int8_dot]


@dataclass(frozen=True)
class Weights:
    """A register of weight rows: its stream and block, the column of the block's totals, and its
    first row in the block.
    """

    stream: int
    block: Expr
    column: Expr
    row: int


@dataclass(frozen=True)
class Totals:
    """A tile's float totals, a register of columns each: in registers, or in memory where the sums
    of integers fill those. There each step leaves them in another place than the one before: LLVM
    would hold what stays, and spill.
    """

    buffer: Buffer  # f32[count * width], or twice as many
    count: int
    width: int
    moving: bool

    @staticmethod
    def of(count: int, dot: Int8Dot) -> Totals:
        """For so many registers of columns."""
        moving = count > dot.beside_totals
        buffer = T.alloc_buffer(((1 + moving) * count * dot.rows,), "float32", scope="global")
        return Totals(buffer, count, dot.rows, moving)

    def load(self, i: int, step: Expr) -> Expr:
        """The i-th before a step."""
        return self.buffer[self._at(i, step)]

    def store(self, value: Expr, i: int, step: Expr) -> None:
        """Of the i-th before a step."""
        T.buffer_store(self.buffer, value, [self._at(i, step)])

    def add(self, value: Expr, i: int, step: Expr, in_order: bool) -> None:
        """To the i-th in a step."""
        value = self.load(i, step) + value
        self.store(vector.in_order(value) if in_order else value, i, step + 1)

    def _at(self, i: int, step: Expr) -> Expr:
        turn = step % 2 * self.count if self.moving else 0
        return T.ramp((turn + i) * self.width, 1, self.width)


class Int8Loops:
    """The loops of one shape; its user sets the buffers.

    `totals` [rows, columns] holds the sums between two runs of columns; here it is the output.
    """

    x: Buffer
    stored: Stored
    residual: Buffer | None
    totals: Buffer
    m: Expr
    scale: float = 1.0
    table: WeightTable | None = None  # that tiles of many rows read

    def __init__(self, n: int, k: int, scheme: Scheme, dot: Int8Dot, traits: CpuTraits) -> None:
        self.streams, self.ahead = traits.streams, traits.ahead
        self.groups, self.scheme, self.dot = k // GROUP, scheme, dot
        self.runs = -(-self.groups // CACHE_GROUPS)
        self.blocks = blocks_of(n)
        self.tasks = -(
            -self.blocks // self.streams
        )  # task t has the blocks t, t + tasks, t + 2 tasks, ...

    def emit(self) -> None:
        """For each task: the rows that fit in L2, the columns that fit in L1, then all its
        blocks.
        """

        def stream(block: Expr) -> tuple[Expr, Expr]:
            block = T.Bind(block)
            return block, block * LANES

        with T.parallel(self.tasks) as task, T.serial(self.parts()) as part:
            first, rows = self.part(part)
            with (
                T.serial(self.runs) as c,
                T.If(task + (self.streams - 1) * self.tasks < self.blocks),
            ):
                with T.Then():
                    self.tiles(
                        first, rows, self.streams, lambda i: stream(task + i * self.tasks), c
                    )
                with T.Else(), T.serial((self.blocks - 1 - task) // self.tasks + 1) as i:
                    self.tiles(first, rows, 1, lambda _: stream(task + i * self.tasks), c)

    def parts(self, most: int = CACHE_ROWS) -> Expr:
        """How often `most` rows make up all."""
        return (self.m + most - 1) // most

    def part(self, part: Expr, most: int = CACHE_ROWS) -> tuple[Expr, Expr]:
        """Its first row and its number of rows."""
        first = T.Bind(part * most)
        return first, T.Bind(T.min(self.m - first, most))

    def tiles(
        self,
        first: Expr,
        rows: Expr,
        streams: int,
        block_at: BlockAt,
        c: Expr,
        most: int = CACHE_ROWS,
    ) -> None:
        """All rows of a part, `most` at most: whole tiles, then the powers of two that make up the
        rest.

        Those of few rows go over all streams at once.
        """
        whole = self.dot.tile
        size = min(whole, 1 << (most.bit_length() - 1))
        while size:
            count = rows // size % 2 if size < whole else rows // size
            start = T.Bind(first + rows // (2 * size) * (2 * size) if size < whole else first)
            tiles = partial(self.same_size, start, size, count, streams, block_at, c)
            if size < whole or most < 2 * whole or self.scheme.values.columns == 1:
                tiles()
            else:
                self.tabulated(tiles, count)
            size //= 2

    def tabulated(self, tiles: Callable[..., None], count: Expr) -> None:
        """Many tiles of packed weights read a table that is made of them once; scales of two levels
        make it pay from the second tile on.
        """
        with T.If(count > (1 if self.scheme.leveled else FEW_TILES)):
            with T.Then():
                tiles(WeightTable.allocate(self.dot, self.scheme, CACHE_GROUPS))
            with T.Else():
                tiles()

    def same_size(
        self,
        start: Expr,
        size: int,
        count: Expr,
        streams: int,
        block_at: BlockAt,
        c: Expr,
        table: WeightTable | None = None,
    ) -> None:
        """`count` tiles of `size` rows. A table is one block's."""
        self.table = table
        fitting = max(1, self.wide(size) * self.dot.rows // LANES)
        together = min(streams, fitting if table is None else 1)
        with T.serial(streams // together) as s:
            blocks = [block_at(s * together + i) for i in range(together)]
            if table is not None:
                self.tabulate(table, blocks[0][0], c)
            with T.serial(count) as t:
                self.tile(T.Bind(start + t * size), size, blocks, c)
        self.table = None

    def tabulate(self, table: WeightTable, block: Expr, c: Expr) -> None:
        """The table is of a block's run of groups."""
        start = T.Bind(c * CACHE_GROUPS)
        with T.serial(T.min(self.groups - start, CACHE_GROUPS)) as i:
            g = T.Bind(start + i)
            self.prefetch([block], g, 0, 1)
            table.put(i, self.stored, block, g)

    def wide(self, rows: int) -> int:
        """Registers of weights that meet so many rows at once."""
        return self.dot.wide(rows, self.scheme, self.table is not None)

    def tile(self, first: Expr, rows: int, blocks: list[tuple[Expr, Expr]], c: Expr) -> None:
        """totals[first : first + rows] += x @ w^T over one run of column groups: in one go or,
        where registers don't hold the sums of 16 weight rows, in several.
        """
        parts = min(LANES // self.dot.rows, self.wide(rows))
        goes = LANES // self.dot.rows // parts
        for go in range(goes):
            at = [go * parts * self.dot.rows + part * self.dot.rows for part in range(parts)]
            weights = [Weights(i, *block, row) for i, block in enumerate(blocks) for row in at]
            self.go(T.Bind(first), rows, weights, c, go, goes)

    def go(
        self, first: Expr, rows: int, weights: list[Weights], c: Expr, go: int, goes: int
    ) -> None:
        """`tile` with these registers of weights; the last run applies the epilogue."""
        width = self.dot.rows
        places = [(first + r, w.column + w.row) for w in weights for r in range(rows)]
        total = Totals.of(len(places), self.dot)
        start, halves = T.Bind(c * CACHE_GROUPS), self.scheme.halves
        read = list({w.stream: w.block for w in weights}.values())
        with T.If(c == 0):
            with T.Then():
                for i in range(len(places)):
                    total.store(T.broadcast(T.float32(0), width), i, 0)
            with T.Else():
                for i, place in enumerate(places):
                    total.store(self.totals[self.total_at(*place)], i, 0)
        with T.serial(T.min(self.groups - start, CACHE_GROUPS)) as g:
            if self.table is None:
                self.prefetch(read, T.Bind(start + g), go, goes)
            self.group(total, weights, first, rows, T.Bind(start + g))
        with T.If(start + CACHE_GROUPS >= self.groups):
            with T.Then():
                for i, place in enumerate(places):
                    value = self.finish(total.load(i, self.groups * halves), *place)
                    T.buffer_store(self.totals, value, self.total_at(*place))
            with T.Else():
                for i, place in enumerate(places):
                    T.buffer_store(self.totals, total.load(i, 0), self.total_at(*place))

    def lanes(self, column: Expr) -> Expr:
        """A register's columns from there on."""
        return T.ramp(column, 1, self.dot.rows)

    def total_at(self, row: Expr, column: Expr) -> tuple[Expr, Expr]:
        """Where a row's totals of a register of columns lie."""
        return row, self.lanes(column)

    def prefetch(self, blocks: list[Expr], g: Expr, go: int, goes: int) -> None:
        """Ask for what the next runs of columns read of blocks of weights, each go for a share of
        the lines.
        """
        stored = self.stored["weight"]
        lines = int(stored.shape[1]) // self.groups
        ahead = self.ahead // len(blocks) ** 2 // 64
        for block in blocks:
            for i in range(go, lines, goes):
                vector.prefetch(stored, block, g * lines + i + ahead, 0)

    def group(self, total: Totals, weights: list[Weights], first: Expr, rows: int, g: Expr) -> None:
        """Add one column group of some weights to their totals: weights are unpacked once for all
        rows, x loaded once.
        """
        halves = self.scheme.halves
        unpacked = [self.unpacked(w, rows, g) for w in weights]
        for half in range(halves):
            inputs = [self.activations(first + r, g, half) for r in range(rows)]
            products = self.dot.groups(self.scheme.values, unpacked, inputs, REGISTERS // halves)
            for i, w in enumerate(weights):
                terms = self.terms(w, g, half).bound()
                for r, product in enumerate(products[i]):
                    value = self.added(first + r, g, terms, product)
                    total.add(value, i * rows + r, g * halves + half, self.scheme.leveled)

    def unpacked(self, weights: Weights, rows: int, g: Expr) -> Iterator[Expr]:
        """A group's registers of weights, as so many activation rows meet them."""
        if self.table is not None:
            return self.table.weights(g % CACHE_GROUPS, weights.row)
        registers = self.dot.unpack(self.scheme, self.stored, weights.block, g, weights.row)
        arranged = self.dot.arranged(registers, rows)
        return map(vector.in_order, arranged) if self.scheme.values.held > 1 else arranged

    def terms(self, weights: Weights, g: Expr, half: int) -> Terms:
        """Of a register of weight rows; of a half of the columns where those have their own."""
        if self.table is not None:
            return self.table.terms_of(g % CACHE_GROUPS, weights.row, half)
        lanes = self.lanes(weights.row)
        return self.scheme.terms(self.stored, weights.block, g, lanes, self.dot.rows, half)

    def added(self, row: Expr, g: Expr, terms: Terms, product: Expr) -> Expr:
        """x scale * (w scale * integer product + minimum * sum of integers)."""
        width = self.dot.rows
        x_scale = T.broadcast(T.reinterpret(self.x[row, g, SCALE], dtype="float32"), width)
        value = T.Cast(f"float32x{width}", product) * T.Bind(terms.scale * x_scale)
        if terms.minimum is not None:
            scaled_sum = T.reinterpret(self.x[row, g, SUM], dtype="float32")
            value = value + terms.minimum * T.broadcast(scaled_sum, width)
        return value

    def activations(self, row: Expr, g: Expr, half: int) -> Activations:
        first = half * REGISTERS // self.scheme.halves

        def word(i: int, n: int) -> Expr:
            return self.x[row, g, T.ramp(first + i, 1, n) if n > 1 else first + i]

        return Activations(word, self.dot.start(self.scheme, self.x[row, g, SUM], half))

    def finish(self, value: Expr, row: Expr, column: Expr) -> Expr:
        value = (
            value
            if self.scale == 1.0
            else value * T.broadcast(T.float32(self.scale), self.dot.rows)
        )
        return value if self.residual is None else self.residual[row, self.lanes(column)] + value
