"""Many rows of int8 activations by weights: both meet in shared memory, a group of 32 columns at a
time.
"""

from __future__ import annotations

from collections.abc import Callable

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.base import Terms
from minicpm_mlc.ops.formats.weights.values import REGISTERS
from minicpm_mlc.ops.gpu.int8_matrix import HELD, Activations, Int8Matrix, Pairs
from minicpm_mlc.ops.gpu.kernel import (
    THREADS,
    accumulate,
    barrier,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.tir import Expr, T

TILE = 64  # rows of x, and of W, that a workgroup multiplies
BLOCKS = TILE // LANES
DOWN = THREADS // LANES  # threads above one another; each has TILE / DOWN rows of x


def tiled(matrix: Int8Matrix, x: Pairs, m: Expr, write: Callable[[Expr, Expr, Expr], None]) -> None:
    """A workgroup takes 64 rows of x by 64 of W; a thread 8 by 4 of them. `write(row of x, row of
    W, product)`.
    """
    across = -(-matrix.blocks // BLOCKS)
    with workgroups((m + TILE - 1) // TILE * across) as (group, thread):
        first, block = T.Bind(group // across * TILE), T.Bind(group % across * BLOCKS)
        lane, part = T.Bind(thread % LANES), T.Bind(thread // LANES)
        tile = _Tile(matrix, thread)
        own = TILE // DOWN
        sums = registers(own * BLOCKS, value=0.0)
        with T.serial(matrix.groups) as g:
            tile.load(x, first, m, block, g)
            barrier()
            columns = [tile.column(b * LANES + lane) for b in range(BLOCKS)]
            for r in range(own):
                row = tile.row(r * DOWN + part)
                scale = T.Bind(row.scale)
                for b, (quads, terms) in enumerate(columns):
                    accumulate(sums, r * BLOCKS + b, matrix.product(quads, row, terms) * scale)
            barrier()
        for r in range(own):
            row = T.Bind(first + r * DOWN + part)
            for b in range(BLOCKS):
                with T.If(T.And(row < m, block + b < matrix.blocks)), T.Then():
                    write(row, (block + b) * LANES + lane, sums[r * BLOCKS + b])


class _Tile:
    """Shared memory for one group of columns: activations row by row; of weights, for each four
    columns the rows side by side, so that neighbouring threads read different banks.
    """

    def __init__(self, matrix: Int8Matrix, thread: Expr) -> None:
        self.matrix, self.thread, scheme = matrix, thread, matrix.scheme
        self.x, self.quads = shared((TILE * HELD,), "int32"), shared((TILE * 8,), "uint32")
        self.scales = [shared((TILE,)) for _ in range(scheme.halves)]
        self.minimums = [shared((TILE,)) for _ in range(scheme.halves * scheme.has_minimum)]

    def load(self, x: Pairs, first: Expr, m: Expr, block: Expr, g: Expr) -> None:
        """All threads."""
        pairs = HELD // 2
        with strided(TILE * pairs, self.thread) as i:
            row = T.Bind(T.min(first + i // pairs, m - 1))
            T.buffer_store(self.x, x[row, g * pairs + i % pairs], [T.ramp(2 * i, 1, 2)])
        with strided(TILE, self.thread) as i:
            at = T.Bind(T.min(block + i // LANES, self.matrix.blocks - 1))
            lane = T.Bind(i % LANES)
            for c, quad in enumerate(self.matrix.quads_of(at, g, lane)):
                T.buffer_store(self.quads, quad, [(c // 4 * TILE + i) * 4 + c % 4])
            for half, scales in enumerate(self.scales):
                terms = self.matrix.scheme.terms(self.matrix.stored, at, g, lane, half=half)
                T.buffer_store(scales, terms.scale, [i])
                if self.minimums:
                    T.buffer_store(self.minimums[half], terms.minimum, [i])

    def column(self, i: Expr) -> tuple[list[Expr], list[Terms]]:
        """A row of W: its integers and terms, in registers."""
        held = registers(REGISTERS, "uint32")
        for c in range(0, REGISTERS, 4):
            source = T.Bind((c // 4 * TILE + i) * 4)
            T.buffer_store(held, self.quads[T.ramp(source, 1, 4)], [T.ramp(c, 1, 4)])
        terms = [
            Terms(scales[i], self.minimums[half][i] if self.minimums else None).bound()
            for half, scales in enumerate(self.scales)
        ]
        return [held[c] for c in range(REGISTERS)], terms

    def row(self, i: Expr) -> Activations:
        """A row of x, in registers."""
        held = registers(HELD, "int32")
        for c in range(0, HELD, 2):
            T.buffer_store(held, self.x[T.ramp(T.Bind(i * HELD + c), 1, 2)], [T.ramp(c, 1, 2)])
        return Activations(held)
