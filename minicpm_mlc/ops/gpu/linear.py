"""linear: x @ W^T over packed weights. Few rows of x stream the weights past them, many meet them
in shared tiles.

Weights are unpacked as words (ops/gpu/weight_words.py). Where they stream, a group's products are
scaled once they are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme, Stored, Terms
from minicpm_mlc.ops.formats.weights.packing import blocks_of
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.group_terms import ACROSS, ROWS, GroupTerms
from minicpm_mlc.ops.gpu.kernel import (
    THREADS,
    accumulate,
    barrier,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.simd_tiles import SimdTiles
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.gpu.weight_words import Words
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.tir import Buffer, Expr

FEW_ROWS = ((2, 1), (16, 2))  # up to so many rows of x, so many stream by together
SHARERS = 4  # threads that share a group of columns
UNROLLED = 4  # turns of a thread through a group whose loads are asked for together
ABREAST = THREADS // SHARERS  # groups that a workgroup reads at once
TILE = (
    64  # rows of x, and of W, that a workgroup multiplies: its two tiles of 32 columns fill 16 KiB
)
TILE_BLOCKS = TILE // LANES
DOWN = (
    THREADS // LANES
)  # threads above one another in a tile; each has TILE / DOWN rows of x by TILE_BLOCKS rows of W


def linear(operator: Linear, traits: GpuTraits, dims: Dims, x: Buffer, *rest: Buffer) -> None:
    """Raises CompileError for shapes that don't fit the layout."""
    n, k, scheme = operator.n, operator.k, operator.scheme
    if k % GROUP:
        raise CompileError(
            f"a linear layer has {k} inputs; the GPU kernels need a multiple of {GROUP}"
        )
    if operator.residual and n != operator.width:
        raise CompileError(f"a residual of {n} columns; the GPU kernels need a multiple of {LANES}")
    *others, out = rest
    weight, blocks = dict(zip(scheme.arguments(n, k), others, strict=False)), blocks_of(n)
    added = others[len(weight) :]
    m = T.Bind(T.Cast("int32", dims.m))
    words = Words(scheme, weight["weight"], blocks, k)
    terms = GroupTerms(scheme, weight, blocks, k)
    product = Product(k, blocks, operator.scale, m, x, scheme, weight, words, terms, added, out)
    _each_size(product, FEW_ROWS, product.on_matrices if traits.simd_tiles else product.tiled)


def _each_size(
    product: Product, sizes: tuple[tuple[int, int], ...], many: Callable[[], None]
) -> None:
    """The way that fits the number of rows."""
    if not sizes:
        many()
        return
    (most, rows), *larger = sizes
    with T.If(product.m <= most):
        with T.Then():
            product.streamed(rows)
        with T.Else():
            _each_size(product, tuple(larger), many)


@dataclass(frozen=True)
class Product:
    """The arguments of one call."""

    k: int
    blocks: int
    scale: float
    m: Expr
    x: Buffer
    scheme: Scheme
    stored: Stored
    words: Words
    terms: GroupTerms
    added: list[Buffer]
    out: Buffer

    def streamed(self, rows: int) -> None:
        """A workgroup takes 16 rows of W by `rows` of x; four threads share a group of columns,
        each every fourth stored row of it, and meet no others before the end.
        """
        words, scheme = self.words, self.scheme
        with workgroups((self.m + rows - 1) // rows * self.blocks) as (group, thread):
            first, block = T.Bind(group // self.blocks * rows), T.Bind(group % self.blocks)
            at = [
                T.Bind(T.min(first + r, self.m - 1)) for r in range(rows)
            ]  # the last row fills up
            q, own = T.Bind(thread % SHARERS), T.Bind(thread // SHARERS)
            sums = registers(rows * LANES, value=0.0)
            with T.serial((self.k // GROUP - own + ABREAST - 1) // ABREAST) as turn:
                g = T.Bind(turn * ABREAST + own)
                parts = [_Part(rows, scheme.has_minimum) for _ in range(scheme.halves)]
                turns = words.steps // SHARERS
                with (T.unroll if turns <= UNROLLED else T.serial)(turns) as i:
                    step = T.Bind(i * SHARERS + q)
                    for half, numbers in enumerate(words.column(block, g, step)):
                        xs = [T.Bind(self.x[row, g * GROUP + half * 16 + step]) for row in at]
                        parts[half % scheme.halves].add(numbers, xs)
                for four in range(ACROSS):
                    for r, terms in enumerate(self.terms.four(block, g, four)):
                        for part, term in zip(parts, terms, strict=True):
                            part.scaled(sums, four * ROWS + r, term)
            for r in range(rows):
                total = self._summed(sums, r * LANES, thread)
                with T.If(T.And(thread < LANES, first + r < self.m)), T.Then():
                    self._write(first + r, block * LANES + thread, total(thread))

    def _summed(self, sums: Buffer, start: int, thread: Expr) -> Callable[[Expr], Expr]:
        """The sum of register start + i over all threads, for every thread: two rounds over shared
        memory.
        """
        many, stride = THREADS // LANES, THREADS + 1
        parts = shared((LANES * stride,))
        barrier()  # what a row before left there has been read
        for lane in range(LANES):
            T.buffer_store(parts, sums[start + lane], [lane * stride + thread])
        barrier()
        few, lane, part = registers(1, value=0.0), T.Bind(thread // many), T.Bind(thread % many)
        for i in range(LANES):
            accumulate(few, 0, parts[lane * stride + i * many + part])
        barrier()
        T.buffer_store(parts, few[0], [lane * (many + 1) + part])
        barrier()

        def total(i: Expr) -> Expr:
            values = [parts[i * (many + 1) + p] for p in range(many)]
            return T.Bind(sum(values[1:], start=values[0]))

        return total

    def _write(self, row: Expr, column: Expr, value: Expr) -> None:
        value = value if self.scale == 1.0 else value * constant(self.scale)
        T.buffer_store(
            self.out, self.added[0][row, column] + value if self.added else value, [row, column]
        )

    def tiled(self) -> None:
        """A workgroup takes 64 rows of x by 64 of W; a thread 8 by 4 of them, which stay in
        registers.
        """
        across = -(-self.blocks // TILE_BLOCKS)
        with workgroups((self.m + TILE - 1) // TILE * across) as (group, thread):
            first, block = T.Bind(group // across * TILE), T.Bind(group % across * TILE_BLOCKS)
            lane, part, own = T.Bind(thread % LANES), T.Bind(thread // LANES), TILE // DOWN
            sums = registers(own * TILE_BLOCKS, value=0.0)
            left, right = shared((TILE * GROUP,)), shared((GROUP * TILE,))  # x by row, W by column
            with T.serial(self.k // GROUP) as g:
                self._load_x(left, first, g, thread)
                self._load_weights(right, block, g, thread)
                barrier()
                with T.serial(GROUP) as i:
                    ws = [T.Bind(right[i * TILE + b * LANES + lane]) for b in range(TILE_BLOCKS)]
                    for r in range(own):
                        x = T.Bind(left[(r * DOWN + part) * GROUP + i])
                        for b, weight in enumerate(ws):
                            accumulate(sums, r * TILE_BLOCKS + b, x * weight)
                barrier()
            for r in range(own):
                row = T.Bind(first + r * DOWN + part)
                for b in range(TILE_BLOCKS):
                    with T.If(T.And(row < self.m, block + b < self.blocks)), T.Then():
                        self._write(row, (block + b) * LANES + lane, sums[r * TILE_BLOCKS + b])

    def on_matrices(self) -> None:
        """The same, whose sums the threads of a simdgroup hold together."""
        across = -(-self.blocks // TILE_BLOCKS)
        with workgroups((self.m + TILE - 1) // TILE * across) as (group, thread):
            first, block = T.Bind(group // across * TILE), T.Bind(group % across * TILE_BLOCKS)
            place = shared((TILE * TILE,))
            tiles = SimdTiles(place, thread)
            with T.serial(self.k // GROUP) as g:
                self._load_x(place, first, g, thread)
                self._load_weights(place, block, g, thread, TILE * GROUP)
                barrier()
                tiles.add()
                barrier()
            tiles.store()
            with strided(TILE * TILE, thread) as i:
                row, column = T.Bind(first + i // TILE), T.Bind(block * LANES + i % TILE)
                with T.If(T.And(row < self.m, column < self.blocks * LANES)), T.Then():
                    self._write(row, column, T.Bind(place[i]))

    def _load_x(self, left: Expr, first: Expr, g: Expr, thread: Expr) -> None:
        with strided(TILE * GROUP, thread) as i:
            row = T.Bind(T.min(first + i // GROUP, self.m - 1))
            T.buffer_store(left, self.x[row, g * GROUP + i % GROUP], [i])

    def _load_weights(
        self, right: Expr, first: Expr, g: Expr, thread: Expr, start: int = 0
    ) -> None:
        """A group of columns of four blocks, scaled, from `start` on; neighbouring threads write to
        different banks.
        """
        words = self.words
        with strided(TILE_BLOCKS * words.per_group, thread) as i:
            q, b = T.Bind(i % words.across), T.Bind(i // words.across % TILE_BLOCKS)
            step = T.Bind(i // (words.across * TILE_BLOCKS))
            block = T.Bind(T.min(first + b, self.blocks - 1))
            columns = words.unpacked(block, g, step, q)
            for lane in range(words.rows):
                row = T.Bind(q * words.rows + lane)
                terms = [
                    self.scheme.terms(self.stored, block, g, row, half=half)
                    for half in range(self.scheme.halves)
                ]
                for half, values in enumerate(columns):
                    value = terms[half % len(terms)].weight(values[lane])
                    at = start + (half * 16 + step) * TILE + b * LANES + row
                    T.buffer_store(right, value, [at])


class _Part:
    """What a thread sums of one group of columns before its scale: of each row of x, by lane."""

    def __init__(self, rows: int, with_inputs: bool) -> None:
        """`with_inputs`: the sums of x too, which meet a minimum."""
        self.rows, self.products = rows, registers(rows * LANES, value=0.0)
        self.inputs = registers(rows, value=0.0) if with_inputs else None

    def add(self, numbers: list[Expr], xs: list[Expr]) -> None:
        """A column's numbers by lane, its x by row."""
        if self.inputs is not None:
            for r, x in enumerate(xs):
                accumulate(self.inputs, r, x)
        for lane, number in enumerate(numbers):
            for r, x in enumerate(xs):
                accumulate(self.products, r * LANES + lane, x * number)

    def scaled(self, sums: Buffer, lane: int, terms: Terms) -> None:
        """Add a lane's to `sums`: scale times the products, minimum times the inputs."""
        for r in range(self.rows):
            at = r * LANES + lane
            part = self.products[at]
            part = part if terms.scale is None else part * terms.scale
            if terms.minimum is not None and self.inputs is not None:
                part = part + terms.minimum * self.inputs[r]
            accumulate(sums, at, part)
