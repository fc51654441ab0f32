"""linear with int8 activations: integer dot products per group of 32 columns, scaled and summed in
float32. Few rows of x stream the weights past them, many meet them in shared tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.int8_matrix import (
    ACROSS,
    ROWS,
    Int8Matrix,
    Pairs,
    activations,
    held_activations,
)
from minicpm_mlc.ops.gpu.int8_products import products
from minicpm_mlc.ops.gpu.kernel import accumulate, barrier, registers, shared, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.tir import Buffer, Expr, T

FEW_ROWS = ((1, 1), (4, 4))  # up to so many rows of x, so many stream by together


def linear_int8(
    operator: LinearInt8, traits: GpuTraits, dims: Dims, x: Buffer, *rest: Buffer
) -> None:
    """Raises CompileError for shapes that don't fit the layout, and for words that the products
    can't take.
    """
    LinearCall(operator, traits, dims.m, Rows(x, dims.m, traits), rest).emit()


class Rows:
    """The rows of x as words of quantize_rows; made outside of workgroups."""

    def __init__(self, words: Buffer, m: Expr, traits: GpuTraits) -> None:
        self.pairs = Pairs(words, m, traits)

    def threads(self, traits: GpuTraits) -> int:
        """Of a workgroup of a linear that streams."""
        return traits.stream_threads

    def prepare(self, m: Expr) -> None:
        """What comes before a launch that reads `pairs`."""

    def of_one(self, thread: Expr) -> Buffer | None:
        """The words of the only row in shared memory, int32 [1, k/32, 10], if a workgroup makes
        them.
        """
        return None


class LinearCall:
    """One call; `rest` are the stored weights, the residual if there is one, and the output."""

    def __init__(
        self,
        operator: LinearInt8,
        traits: GpuTraits,
        m: Expr,
        x: Rows,
        rest: tuple[Buffer, ...],
    ) -> None:
        require_fit(operator, traits)
        n, k, scheme = operator.n, operator.k, operator.scheme
        if operator.residual and n != operator.width:
            raise CompileError(f"a residual of {n} columns; the GPU kernels need whole blocks")
        *others, self.out = rest
        stored = dict(zip(scheme.arguments(n, k), others, strict=False))
        self.added, self.scale = others[len(stored) :], operator.scale
        self.matrix, self.m = Int8Matrix(scheme, stored, n, k), T.Bind(T.Cast("int32", m))
        self.traits, self.x = traits, x

    def emit(self) -> None:
        """The way that fits the number of rows."""
        by_rows(self.m, FEW_ROWS, self.streamed, self.many)

    def many(self) -> None:
        """Tiles."""
        self.x.prepare(self.m)
        products(self.matrix, self.x.pairs, self.m, self.traits, self._write)

    def streamed(self, rows: int) -> None:
        """A workgroup takes so many rows of x by a block of W."""
        matrix, m = self.matrix, self.m
        if rows > 1:
            self.x.prepare(m)
        threads = self.x.threads(self.traits)
        with workgroups((m + rows - 1) // rows * matrix.blocks, threads) as (group, thread):
            first = T.Bind(group // matrix.blocks * rows)
            block = T.Bind(group % matrix.blocks)
            stream = Stream(matrix, self.x, rows, threads)
            sums = stream.sums(first, m, block, thread)
            with T.If(thread < rows * LANES), T.Then():
                row = T.Bind(first + thread // LANES)
                with T.If(row < m), T.Then():
                    self._write(row, block * LANES + thread % LANES, sums(thread))

    def _write(self, row: Expr, column: Expr, value: Expr) -> None:
        value = value if self.scale == 1.0 else value * constant(self.scale)
        value = self.added[0][row, column] + value if self.added else value
        T.buffer_store(self.out, value, [row, column])


def require_fit(operator: LinearInt8 | LinearSwigluInt8, traits: GpuTraits) -> None:
    """Raises CompileError where the operator's words are not those of the device."""
    if operator.k % GROUP:
        raise CompileError(
            f"a linear layer has {operator.k} inputs; the GPU kernels need a multiple of {GROUP}"
        )
    if not operator.fits(traits):
        raise CompileError(
            f"{operator.name}: the GPU's products need another factor of sums than "
            f"{operator.sum_factor} beside weights of {operator.scheme.name}"
        )


def by_rows(
    m: Expr,
    sizes: tuple[tuple[int, int], ...],
    few: Callable[[int], None],
    many: Callable[[], None],
) -> None:
    """few(together) for the first of `sizes` that the number of rows fits, else many()."""
    if not sizes:
        many()
        return
    (most, together), *larger = sizes
    with T.If(m <= most):
        with T.Then():
            few(together)
        with T.Else():
            by_rows(m, tuple(larger), few, many)


@dataclass(frozen=True)
class Stream:
    """Some rows of x by a block of W for each team of `threads` threads: four to a group of
    columns, so that a team reads `abreast` groups at once.
    """

    matrix: Int8Matrix
    x: Rows
    rows: int
    threads: int
    teams: int = 1

    @property
    def abreast(self) -> int:
        """Groups of columns that a team reads at once."""
        return self.threads // ACROSS

    def sums(self, first: Expr, m: Expr, block: Expr, thread: Expr) -> Callable[[Expr], Expr]:
        """The sum of team i // (16 rows), row i // 16 of its rows and lane i % 16, for every
        thread, behind a barrier.
        """
        q, own = T.Bind(thread % ACROSS), T.Bind(thread % self.threads // ACROSS)
        at = [T.Bind(T.min(first + r, m - 1)) for r in range(self.rows)]  # the last row fills up
        held = self.x.of_one(thread) if self.rows == 1 else None
        totals = registers(self.rows * ROWS, value=0.0)
        with T.serial((self.matrix.groups - own + self.abreast - 1) // self.abreast) as step:
            g = T.Bind(step * self.abreast + own)
            words = self.matrix.load(block, g, q)
            if held is None:
                xs = [activations(self.x.pairs, row, g) for row in at]
            else:
                xs = [held_activations(held, g)]
            terms = self.matrix.terms_of(block, g, q)
            for lane in range(ROWS):
                quads = self.matrix.quads(words, lane)
                for r, x in enumerate(xs):
                    product = self.matrix.product(quads, x, terms[lane])
                    accumulate(totals, r * ROWS + lane, product * x.scale)
        return self._summed(totals, q, own, thread)

    def _summed(self, totals: Buffer, q: Expr, own: Expr, thread: Expr) -> Callable[[Expr], Expr]:
        """Two rounds over shared memory: a sixteenth of the threads' sums, then these."""
        stride, many = self.abreast + 1, self.threads // LANES
        parts = shared((self.teams * self.rows * LANES * stride,))
        start = T.Bind(thread // self.threads * (self.rows * LANES))
        for r in range(self.rows):
            for lane in range(ROWS):
                place = (start + r * LANES + q * ROWS + lane) * stride + own
                T.buffer_store(parts, totals[r * ROWS + lane], [place])
        barrier()
        output, part = T.Bind(thread % self.threads // many), T.Bind(thread % many)
        few = registers(self.rows, value=0.0)
        for r in range(self.rows):
            for i in range(self.abreast // many):
                place = (start + r * LANES + output) * stride + i * many + part
                accumulate(few, r, parts[place])
        barrier()
        for r in range(self.rows):
            T.buffer_store(parts, few[r], [(start + r * LANES + output) * (many + 1) + part])
        barrier()

        def total(i: Expr) -> Expr:
            values = [parts[i * (many + 1) + p] for p in range(many)]
            return sum(values[1:], values[0])

        return total
