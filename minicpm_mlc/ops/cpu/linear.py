"""linear: x @ W^T over packed weights, with the residual add and scale as its epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import MOST_ROWS, CpuTraits
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Stored, Terms
from minicpm_mlc.ops.formats.weights.packing import blocks_of
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.tir import Buffer, Expr

TILE_COLUMNS = 128  # columns unpacked at once: 8 KiB of float32 weights stay in L1
CACHE_ROWS = 252  # x rows that visit an unpacked tile: 126 KiB stay in L2; a multiple of tiles
GEMV_ROWS = 4  # below this many rows, weights go straight from memory into the dot products


def linear(operator: Linear, traits: CpuTraits, dims: Dims, x: Buffer, *rest: Buffer) -> None:
    """Raises CompileError for shapes that don't fit the layout."""
    if operator.k % GROUP:
        raise CompileError(
            f"a linear layer has {operator.k} inputs; the CPU kernels need a multiple of {GROUP}"
        )
    require_whole_residual(operator)
    _Loops(operator, traits.linear_rows, dims.m, x, rest).emit()


def require_whole_residual(operator: Linear) -> None:
    """Raises CompileError for a residual that does not fill the output."""
    if operator.residual and operator.n != operator.width:
        raise CompileError(
            f"a residual of {operator.n} columns; the CPU kernels need a multiple of {LANES}"
        )


def arguments_of(operator: Linear, rest: Sequence[Buffer]) -> tuple[Stored, Buffer | None, Buffer]:
    """What follows x: the weight's stored tensors, the residual if there is one, the output."""
    *others, out = rest
    stored = dict(zip(operator.scheme.arguments(operator.n, operator.k), others, strict=False))
    return stored, others[-1] if operator.residual else None, out


class _Loops:
    """The loops of one call; a register tile has `most` x rows, a third of them, or one."""

    def __init__(
        self, operator: Linear, most: int, m: Expr, x: Buffer, rest: Sequence[Buffer]
    ) -> None:
        self.sizes = most, most // 3, 1
        self.chains = 2 if most > MOST_ROWS else 1
        self.k, self.scheme, self.scale = operator.k, operator.scheme, operator.scale
        self.m, self.x = m, x
        self.stored, self.residual, self.out = arguments_of(operator, rest)
        self.blocks = blocks_of(operator.n)
        self.columns = next(c for c in (TILE_COLUMNS, 96, 64, 32) if self.k % c == 0)

    def emit(self) -> None:
        """One task per block of 16 output columns."""
        with T.parallel(self.blocks) as block, T.If(self.m < GEMV_ROWS):
            with T.Then(), T.serial(self.m) as row:
                self.gemv(row, block)
            with T.Else():
                self.gemm(block)

    def gemv(self, row: Expr, block: Expr) -> None:
        """One row. Without scales its columns are added one by one, as gemm does: the same sum, bit
        for bit.
        """
        total = vector.registers(1)
        vector.store(total, vector.splat(0.0), 0)
        with T.serial(self.k // GROUP) as g:
            if self.scheme.group:
                value = self.group_product(row, block, g)
                vector.store(total, vector.load(total, 0) + value, 0)
            else:
                for half in (0, 1):
                    for j in range(GROUP // 2):
                        product = self.factor(row, g, half, j) * self.numbers(block, g, j)[half]
                        vector.store(total, vector.load(total, 0) + product, 0)
        vector.store(self.out, self.finish(vector.load(total, 0), row, block), row, block * LANES)

    def group_product(self, row: Expr, block: Expr, g: Expr) -> Expr:
        """One row times 32 columns: scale * (x * numbers) + minimum * (sum of x)."""
        products = self.half_sums(row, block, g)
        if self.scheme.halves > 1:
            first, second = (self.terms(block, g, half).scale for half in (0, 1))
            return products[0] * first + products[1] * second
        terms = self.terms(block, g)
        scaled = (products[0] + products[1]) * terms.scale
        if terms.minimum is None:
            return scaled
        first, second = (vector.load(self.x, row, g * GROUP + half) for half in (0, 16))
        total = vector.fold(lambda a, b: a + b, T.Bind(first + second))
        return scaled + vector.splat(total) * terms.minimum

    def half_sums(self, row: Expr, block: Expr, g: Expr) -> tuple[Expr, Expr]:
        """Of 16 columns each: unpack, multiply, add; `chains` sums of each hide the latency of the
        additions. Where registers are few, one by one: LLVM would spill.
        """
        sums: list[Expr] = [None] * (2 * self.chains)
        for j in range(GROUP // 2):
            for half, number in enumerate(self.numbers(block, g, j)):
                product = self.factor(row, g, half, j) * number
                at = half * self.chains + j % self.chains
                added = product if sums[at] is None else sums[at] + product
                sums[at] = T.Bind(added) if self.chains > 1 else vector.in_order(added)
        halves = sums[: self.chains], sums[self.chains :]
        first, second = (reduce(add, half) for half in halves)
        return first, second

    def factor(self, row: Expr, g: Expr, half: int, j: int) -> Expr:
        return vector.splat(self.x[row, g * GROUP + half * 16 + j])

    def gemm(self, block: Expr) -> None:
        """Unpack a tile of columns once, then send a cache-sized block of rows through it."""
        tile = T.alloc_buffer((self.columns, LANES), "float32", scope="local")
        with (
            T.serial((self.m + CACHE_ROWS - 1) // CACHE_ROWS) as part,
            T.serial(self.k // self.columns) as c,
        ):
            self.unpack(tile, block, c)
            first = T.Bind(part * CACHE_ROWS)
            rows = T.Bind(T.min(self.m - first, CACHE_ROWS))
            left = rows
            for size in self.sizes:
                start = T.Bind(first + rows - left)
                with T.serial(left // size) as t:
                    self.multiply(tile, start + t * size, size, block, c)
                left = T.Bind(left % size)

    def unpack(self, tile: Buffer, block: Expr, c: Expr) -> None:
        """tile[j] = float32 weights of column c * columns + j."""
        with T.serial(self.columns // GROUP) as i, T.serial(GROUP // 2) as j:
            g = T.Bind(c * (self.columns // GROUP) + i)
            for half, number in enumerate(self.numbers(block, g, j)):
                weight = self.terms(block, g, half).weight(number)
                vector.store(tile, weight, i * GROUP + half * 16 + j, 0)

    def multiply(self, tile: Buffer, first: Expr, rows: int, block: Expr, c: Expr) -> None:
        """out[first : first + rows] += x @ tile; the last tile of columns applies the epilogue."""
        acc = vector.registers(rows)
        with T.If(c == 0):
            with T.Then():
                for r in range(rows):
                    vector.store(acc, vector.splat(0.0), r * LANES)
            with T.Else():
                for r in range(rows):
                    vector.store(acc, vector.load(self.out, first + r, block * LANES), r * LANES)
        with T.serial(self.columns) as j:
            weight = T.Bind(vector.load(tile, j, 0))
            for r in range(rows):
                product = vector.splat(self.x[first + r, c * self.columns + j]) * weight
                vector.store(acc, vector.load(acc, r * LANES) + product, r * LANES)
        with T.If(c == self.k // self.columns - 1):
            with T.Then():
                for r in range(rows):
                    value = self.finish(vector.load(acc, r * LANES), first + r, block)
                    vector.store(self.out, value, first + r, block * LANES)
            with T.Else():
                for r in range(rows):
                    vector.store(self.out, vector.load(acc, r * LANES), first + r, block * LANES)

    def numbers(self, block: Expr, g: Expr, j: Expr) -> tuple[Expr, Expr]:
        return self.scheme.pair(self.stored, block, g, j, T.ramp(0, 1, LANES), LANES)

    def terms(self, block: Expr, g: Expr, half: int = 0) -> Terms:
        return self.scheme.terms(self.stored, block, g, T.ramp(0, 1, LANES), LANES, half)

    def finish(self, value: Expr, row: Expr, block: Expr) -> Expr:
        value = value if self.scale == 1.0 else value * vector.splat(self.scale)
        return (
            value
            if self.residual is None
            else vector.load(self.residual, row, block * LANES) + value
        )
