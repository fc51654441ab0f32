"""linear with int8 activations: integer dot products per group of 32 columns, scaled and summed in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.int8_dot import DOTS, Activations, Int8Dot
from minicpm_mlc.ops.cpu.linear import arguments_of, require_whole_residual
from minicpm_mlc.ops.cpu.traits import CpuTraits
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
# weight blocks of one task, far apart: to one row, memory delivers 15 % more in two streams than in
# one
STREAMS = 2
AHEAD = {
    2: 2048,
    1: 8192,
}  # bytes that each of so many streams is prefetched ahead: 30 % for 8 and 16 rows


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
    loops = Int8Loops(operator.n, operator.k, operator.scheme, dot_of(operator, traits))
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
    table: Buffer | None = None  # of a run's scales and minimums, where reading them is dear

    def __init__(self, n: int, k: int, scheme: Scheme, dot: Int8Dot) -> None:
        self.groups, self.scheme, self.dot = k // GROUP, scheme, dot
        self.runs = -(-self.groups // CACHE_GROUPS)
        self.blocks = blocks_of(n)
        self.tasks = -(
            -self.blocks // STREAMS
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
            with T.serial(self.runs) as c, T.If(task + (STREAMS - 1) * self.tasks < self.blocks):
                with T.Then():
                    self.tiles(first, rows, STREAMS, lambda i: stream(task + i * self.tasks), c)
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
            if size < whole or most < 2 * whole or not self.scheme.leveled:
                tiles()
            else:
                self.tabulated(tiles, count)
            size //= 2

    def tabulated(self, tiles: Callable[..., None], count: Expr) -> None:
        """Several tiles read scales and minimums from a table, in L1, that is made of them once."""
        shape = (STREAMS, CACHE_GROUPS, self.scheme.terms_count, LANES)
        with T.If(count > 1):
            with T.Then():
                tiles(T.alloc_buffer(shape, "float32"))
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
        table: Buffer | None = None,
    ) -> None:
        """`count` tiles of `size` rows."""
        together = streams if size <= self.dot.paired else 1
        with T.serial(streams // together) as s:
            blocks = [block_at(s * together + i) for i in range(together)]
            if table is not None:
                self.tabulate(table, [block for block, _ in blocks], c)
            self.table = table
            with T.serial(count) as t:
                self.tile(T.Bind(start + t * size), size, blocks, c)
            self.table = None

    def tabulate(self, table: Buffer, blocks: list[Expr], c: Expr) -> None:
        """table[i, g] = the scales and minimums of the i-th block's groups of a run."""
        start, lanes = T.Bind(c * CACHE_GROUPS), T.ramp(0, 1, LANES)
        with T.serial(T.min(self.groups - start, CACHE_GROUPS)) as g:
            for i, block in enumerate(blocks):
                halves = [
                    self.scheme.terms(self.stored, block, T.Bind(start + g), lanes, LANES, half)
                    for half in range(self.scheme.halves)
                ]
                numbers = [n for terms in halves for n in (terms.scale, terms.minimum)]
                for at, number in enumerate(n for n in numbers if n is not None):
                    vector.store(table, number, i, g, at, 0)

    def tile(self, first: Expr, rows: int, blocks: list[tuple[Expr, Expr]], c: Expr) -> None:
        """totals[first : first + rows] += x @ w^T over one run of column groups; the last run
        applies the epilogue.
        """
        total = vector.registers(rows * len(blocks))
        places = [(first + r, column) for _, column in blocks for r in range(rows)]
        start = T.Bind(c * CACHE_GROUPS)
        with T.If(c == 0):
            with T.Then():
                for i in range(len(places)):
                    vector.store(total, vector.splat(0.0), i * LANES)
            with T.Else():
                for i, place in enumerate(places):
                    vector.store(total, vector.load(self.totals, *self.total_at(*place)), i * LANES)
        with T.serial(T.min(self.groups - start, CACHE_GROUPS)) as g:
            self.group(total, [block for block, _ in blocks], first, rows, T.Bind(start + g))
        with T.If(start + CACHE_GROUPS >= self.groups):
            with T.Then():
                for i, place in enumerate(places):
                    vector.store(
                        self.totals,
                        self.finish(vector.load(total, i * LANES), *place),
                        *self.total_at(*place),
                    )
            with T.Else():
                for i, place in enumerate(places):
                    vector.store(self.totals, vector.load(total, i * LANES), *self.total_at(*place))

    def total_at(self, row: Expr, column: Expr) -> tuple[Expr, Expr]:
        """Where a row's 16 totals lie."""
        return row, column

    def group(self, total: Expr, blocks: list[Expr], first: Expr, rows: int, g: Expr) -> None:
        """Add one column group of some blocks to their totals: weights are unpacked once for all
        rows, x loaded once.
        """
        for block in blocks:
            self.prefetch(block, g, AHEAD[len(blocks)])
        for part in range(0, LANES, self.dot.rows):
            weights = [self.weights(i, block, g, part) for i, block in enumerate(blocks)]
            for r in range(0, rows, self.dot.together):
                beside = range(r, min(r + self.dot.together, rows))
                for half in range(self.scheme.halves):
                    inputs = [self.activations(first + row, g, half) for row in beside]
                    unpacked = [halves[half][1] for halves in weights]
                    products = self.dot.groups(self.scheme.values, unpacked, inputs)
                    for i, halves in enumerate(weights):
                        for row, product in zip(beside, products[i], strict=True):
                            at = (i * rows + row) * LANES + part
                            self.add(total, at, first + row, g, halves[half][0], product)

    def prefetch(self, block: Expr, g: Expr, ahead: int) -> None:
        weight = self.stored["weight"]
        lines = int(weight.shape[1]) // self.groups
        for i in range(lines):
            vector.prefetch(weight, block, g * lines + i + ahead // 64, 0)

    def weights(self, i: int, block: Expr, g: Expr, part: int) -> list[tuple[Terms, list[Expr]]]:
        """Terms and unpacked weights of one register of rows of the i-th block; of each half of the
        columns where those have their own scales.
        """
        unpacked = self.dot.unpack(self.scheme, self.stored, block, g, part)
        size = len(unpacked) // self.scheme.halves
        return [
            (self.terms(i, block, g, part, half).bound(), unpacked[half * size : (half + 1) * size])
            for half in range(self.scheme.halves)
        ]

    def terms(self, i: int, block: Expr, g: Expr, part: int, half: int) -> Terms:
        """From the table, if there is one."""
        lanes = T.ramp(part, 1, self.dot.rows)
        if self.table is None:
            return self.scheme.terms(self.stored, block, g, lanes, self.dot.rows, half)
        count = self.scheme.terms_count // self.scheme.halves
        places = range(half * count, (half + 1) * count)
        return Terms(*(self.table[i, g % CACHE_GROUPS, at, lanes] for at in places))

    def add(self, total: Expr, at: int, row: Expr, g: Expr, terms: Terms, product: Expr) -> None:
        """total[at...] += x scale * (w scale * integer product + minimum * sum of integers)."""
        width = self.dot.rows
        x_scale = T.broadcast(T.reinterpret(self.x[row, g, SCALE], dtype="float32"), width)
        value = T.Cast(f"float32x{width}", product) * T.Bind(terms.scale * x_scale)
        if terms.minimum is not None:
            x_sum = T.broadcast(T.Cast("float32", self.x[row, g, SUM]), width)
            value = value + terms.minimum * T.Bind(x_sum * x_scale)
        T.buffer_store(total, total[T.ramp(at, 1, width)] + value, [T.ramp(at, 1, width)])

    def activations(self, row: Expr, g: Expr, half: int) -> Activations:
        first = half * REGISTERS // self.scheme.halves

        def word(i: int, n: int) -> Expr:
            return self.x[row, g, T.ramp(first + i, 1, n) if n > 1 else first + i]

        return Activations(word, self.dot.start(self.scheme, self.x[row, g, SUM], half))

    def finish(self, value: Expr, row: Expr, column: Expr) -> Expr:
        value = value if self.scale == 1.0 else value * vector.splat(self.scale)
        return value if self.residual is None else vector.load(self.residual, row, column) + value
