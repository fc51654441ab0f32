"""The gate and up product, SwiGLU and the rounding to int8 in one: what the down product reads.

Few rows: a workgroup takes 32 columns of gate and of up, whose sums never leave it. Many rows: the
product lies in memory before the second launch.
"""

from __future__ import annotations

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.packing import QUAD
from minicpm_mlc.ops.gpu.int8_matrix import Int8Matrix
from minicpm_mlc.ops.gpu.int8_products import products
from minicpm_mlc.ops.gpu.kernel import THREADS, barrier, registers, shared, workgroups
from minicpm_mlc.ops.gpu.linear_int8 import FEW_ROWS, Rows, Stream, by_rows, require_fit
from minicpm_mlc.ops.gpu.quantize_rows import quantiser, read_quad
from minicpm_mlc.ops.gpu.swiglu import silu
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.tir import Buffer, Expr, T

HALVES = GROUP // LANES  # blocks of gate, and of up, that a workgroup streams
TEAM = 64  # threads to a block


def linear_swiglu_int8(
    operator: LinearSwigluInt8, traits: GpuTraits, dims: Dims, x: Buffer, *rest: Buffer
) -> None:
    """Raises CompileError when intermediate isn't a multiple of 32, and for words that the products
    can't take.
    """
    Gated(operator, traits, dims.m, Rows(x, dims.m, traits), rest).emit()


class Gated:
    """One call; `rest` are the stored weights and the output."""

    def __init__(
        self,
        operator: LinearSwigluInt8,
        traits: GpuTraits,
        m: Expr,
        x: Rows,
        rest: tuple[Buffer, ...],
    ) -> None:
        width, k, scheme = operator.intermediate, operator.k, operator.scheme
        if width % GROUP:
            raise CompileError(
                f"intermediate_size is {width}; int8 activations need a multiple of {GROUP}"
            )
        require_fit(operator, traits)
        *tensors, self.out = rest
        stored = dict(zip(scheme.arguments(2 * width, k), tensors, strict=True))
        self.matrix = Int8Matrix(scheme, stored, 2 * width, k)
        self.rows, self.m = m, T.Bind(T.Cast("int32", m))
        self.width, self.factor, self.x = width, operator.sum_factor, x
        self.traits, self.rounds = traits, quantiser(traits)

    def emit(self) -> None:
        """The way that fits the number of rows."""
        by_rows(self.m, FEW_ROWS, self.streamed, self.in_memory)

    def streamed(self, rows: int) -> None:
        """32 columns of `rows` rows by a workgroup, a team of threads for each block."""
        tasks, teams = self.width // GROUP, 2 * HALVES
        if rows > 1:
            self.x.prepare(self.m)
        with workgroups((self.m + rows - 1) // rows * tasks, teams * TEAM) as (group, thread):
            first, task = T.Bind(group // tasks * rows), T.Bind(group % tasks)
            team = T.Bind(thread // TEAM)
            block = T.Bind(team // HALVES * (self.width // LANES) + task * HALVES + team % HALVES)
            stream = Stream(self.matrix, self.x, rows, TEAM, teams)
            sums = stream.sums(first, self.m, block, thread)
            values = shared((rows * GROUP,))
            with T.If(thread < rows * GROUP), T.Then():
                row, column = T.Bind(thread // GROUP), T.Bind(thread % GROUP)
                gate = T.Bind(column // LANES * rows * LANES + row * LANES + column % LANES)
                up = sums(gate + HALVES * rows * LANES)
                T.buffer_store(values, silu(T.Bind(sums(gate))) * up, [thread])
            barrier()
            words = self.rounds((task + 1) * GROUP, self.factor, thread, teams * TEAM)
            for r in range(rows):
                row = T.Bind(T.min(first + r, self.m - 1))  # the last row is written again
                words.write(
                    self.out,
                    row,
                    task * (GROUP // QUAD),
                    lambda to, at, i, r=r: read_quad(
                        to, at, values, [], T.Bind(r * GROUP + i - task * GROUP)
                    ),
                )

    def in_memory(self) -> None:
        """Tiles of the product, then some hundred columns of a row by a workgroup."""
        self.x.prepare(self.m)
        product = T.alloc_buffer((self.rows, 2 * self.width), "float32")
        products(
            self.matrix,
            self.x.pairs,
            self.m,
            self.traits,
            lambda row, column, value: T.buffer_store(product, value, [row, column]),
        )
        size = THREADS * self.rounds.each
        parts = -(-self.width // size)
        with workgroups(self.rows * parts) as (group, thread):
            row, first = T.Bind(group // parts), T.Bind(group % parts * (size // QUAD))
            words = self.rounds(self.width, self.factor, thread, THREADS)

            def read(to: Buffer, at: int, column: Expr) -> None:
                gate, up = registers(QUAD), registers(QUAD)
                read_quad(gate, 0, product, [row], column)
                read_quad(up, 0, product, [row], T.Bind(self.width + column))
                for i in range(QUAD):
                    T.buffer_store(to, silu(gate[i]) * up[i], [at + i])

            words.write(self.out, row, first, read)
