"""linear: x @ W^T over packed weights. Few rows of x stream the weights past them, many meet them
in shared tiles.

Weights are unpacked as words (ops/gpu/weight_words.py), scales and minimums are widened to float32
once for the threads that share them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme, Stored, Terms
from minicpm_mlc.ops.formats.weights.packing import blocks_of
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import (
    THREADS,
    accumulate,
    barrier,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.gpu.weight_words import Words
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.tir import Buffer, Expr

FEW_ROWS = ((2, 1), (16, 4))  # up to so many rows of x, so many stream by together
CHUNK = 16  # groups of columns whose scales lie in shared memory at once
TILE = (
    64  # rows of x, and of W, that a workgroup multiplies: its two tiles of 32 columns fill 16 KiB
)
TILE_BLOCKS = TILE // LANES
DOWN = (
    THREADS // LANES
)  # threads above one another in a tile; each has TILE / DOWN rows of x by TILE_BLOCKS rows of W


def linear(operator: Linear, _: GpuTraits, dims: Dims, x: Buffer, *rest: Buffer) -> None:
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
    product = Product(k, blocks, operator.scale, m, x, scheme, weight, words, added, out)
    _each_size(product, FEW_ROWS)


def _each_size(product: Product, sizes: tuple[tuple[int, int], ...]) -> None:
    """The way that fits the number of rows."""
    if not sizes:
        product.tiled()
        return
    (most, rows), *larger = sizes
    with T.If(product.m <= most):
        with T.Then():
            product.streamed(rows)
        with T.Else():
            _each_size(product, tuple(larger))


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
    added: list[Buffer]
    out: Buffer

    def streamed(self, rows: int) -> None:
        """A workgroup takes 16 rows of W by `rows` of x; a thread every 128th word, whose rows of W
        are always the same.
        """
        words, held = self.words, rows * self.words.rows
        with workgroups((self.m + rows - 1) // rows * self.blocks) as (group, thread):
            first, block = T.Bind(group // self.blocks * rows), T.Bind(group % self.blocks)
            at = [
                T.Bind(T.min(first + r, self.m - 1)) for r in range(rows)
            ]  # the last row fills up
            q, sums = T.Bind(thread % words.across), registers(held, value=0.0)
            terms, halves = self._shared_terms(), self.scheme.halves
            with T.serial(-(-self.k // GROUP // CHUNK)) as chunk:
                groups = T.Bind(T.min(self.k // GROUP - chunk * CHUNK, CHUNK))
                self._stage(terms, block, chunk, groups, thread)
                with strided(groups * words.per_group, thread) as i:
                    g, step = T.Bind(i // words.per_group), T.Bind(i // words.across % words.steps)
                    columns = words.unpacked(block, T.Bind(chunk * CHUNK + g), step, q)
                    for half, values in enumerate(columns):
                        column = T.Bind((chunk * CHUNK + g) * GROUP + half * 16 + step)
                        xs = [T.Bind(self.x[row, column]) for row in at]
                        for lane, value in enumerate(values):
                            place = (g * halves + half % halves) * LANES + q * words.rows + lane
                            weight = T.Bind(_at(terms, place).weight(value))
                            for r in range(rows):
                                accumulate(sums, r * words.rows + lane, xs[r] * weight)
            parts = self._summed(sums, held, thread)
            with strided(rows * LANES, thread) as i, T.If(first + i // LANES < self.m), T.Then():
                lane = T.Bind(i % LANES)
                place = T.Bind(
                    (i // LANES * words.rows + lane % words.rows) * THREADS + lane // words.rows
                )
                self._write(first + i // LANES, block * LANES + lane, parts[place])

    def _shared_terms(self) -> Terms:
        """Shared memory for the terms of a chunk's groups, at 16 g + lane, or of their halves."""
        size = CHUNK * self.scheme.halves * LANES
        present = (bool(self.scheme.group), self.scheme.has_minimum)
        return Terms(*(shared((size,)) if there else None for there in present))

    def _stage(self, terms: Terms, block: Expr, chunk: Expr, groups: Expr, thread: Expr) -> None:
        """Fill it, behind barriers."""
        if not self.scheme.group:
            return
        barrier()  # the chunk before has been read
        halves = self.scheme.halves
        with strided(groups * halves * LANES, thread) as i:
            g, half = T.Bind(chunk * CHUNK + i // LANES // halves), T.Bind(i // LANES % halves)
            read = self.scheme.terms(self.stored, block, g, i % LANES, half=half)
            for buffer, term in ((terms.scale, read.scale), (terms.minimum, read.minimum)):
                if buffer is not None:
                    T.buffer_store(buffer, term, [i])
        barrier()

    def _summed(self, sums: Buffer, held: int, thread: Expr) -> Expr:
        """Shared memory whose places 128 i + q hold register i's sum over the threads q, q +
        across, ...
        """
        parts, width = shared((held * THREADS,)), THREADS
        for i in range(held):
            T.buffer_store(parts, sums[i], [i * THREADS + thread])
        barrier()
        while width > self.words.across:
            width //= 2
            with T.If(thread < width), T.Then():
                for i in range(held):
                    accumulate(parts, i * THREADS + thread, parts[i * THREADS + width + thread])
            barrier()
        return parts

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

    def _load_x(self, left: Expr, first: Expr, g: Expr, thread: Expr) -> None:
        with strided(TILE * GROUP, thread) as i:
            row = T.Bind(T.min(first + i // GROUP, self.m - 1))
            T.buffer_store(left, self.x[row, g * GROUP + i % GROUP], [i])

    def _load_weights(self, right: Expr, first: Expr, g: Expr, thread: Expr) -> None:
        """A group of columns of four blocks, scaled; neighbouring threads write to different
        banks.
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
                    T.buffer_store(right, value, [(half * 16 + step) * TILE + b * LANES + row])


def _at(terms: Terms, place: Expr) -> Terms:
    """The terms at a place of their buffers."""
    buffers = (terms.scale, terms.minimum)
    return Terms(*(None if buffer is None else buffer[place] for buffer in buffers))
