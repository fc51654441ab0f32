"""The gate and up product, SwiGLU and the rounding to int8 in one: what the down product reads.

A task owns 32 columns of gate and up, so that their sums never leave its core's cache: at 16,384
columns a prefill would write and read 128 KiB a row.
"""

from __future__ import annotations

from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.linear_int8 import CACHE_ROWS, Int8Loops, dot_of
from minicpm_mlc.ops.cpu.quantize_rows import quantize_group
from minicpm_mlc.ops.cpu.swiglu import activated
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.tir import Buffer, Expr

HALVES = GROUP // LANES  # weight blocks of gate, and of up, per task
FEW_ROWS = 3  # their totals fill less than the 1 KiB that TVM leaves on the stack


def linear_swiglu_int8(
    operator: LinearSwigluInt8, traits: CpuTraits, dims: Dims, x: Buffer, *rest: Buffer
) -> None:
    """Raises CompileError when intermediate isn't a multiple of 32, and for words that the
    processor's products can't take.
    """
    intermediate, scheme = operator.intermediate, operator.scheme
    if intermediate % GROUP:
        raise CompileError(
            f"intermediate_size is {intermediate}; int8 activations need a multiple of {GROUP}"
        )
    loops = _Loops(operator, traits)
    *tensors, out = rest
    loops.m, loops.x, loops.residual = dims.m, x, None
    names = scheme.arguments(2 * intermediate, operator.k)
    loops.stored = dict(zip(names, tensors, strict=True))
    loops.emit_into(out)


class _Loops(Int8Loops):
    """`totals` of a task: one part's rows of gate's and up's 32 columns, 16 of gate, 16 of up, and
    so on.
    """

    first: Expr

    def __init__(self, operator: LinearSwigluInt8, traits: CpuTraits) -> None:
        rows, dot = 2 * operator.intermediate, dot_of(operator, traits)
        super().__init__(rows, operator.k, operator.scheme, dot, traits)
        self.tasks = operator.intermediate // GROUP
        self.factor = operator.sum_factor

    def emit_into(self, out: Buffer) -> None:
        """Few rows apart: their totals fit the stack. From TVM's pool a decode step's would cost 15
        % of its time.
        """
        with T.If(self.m <= FEW_ROWS):
            with T.Then():
                self.emit_parts(FEW_ROWS, out)
            with T.Else():
                self.emit_parts(CACHE_ROWS, out)

    def emit_parts(self, most: int, out: Buffer) -> None:
        """For each task: `most` rows, gate and up as two streams, then SwiGLU."""
        with T.parallel(self.tasks) as task, T.serial(self.parts(most)) as part:
            self.totals = T.alloc_buffer((most, 2 * GROUP), "float32")
            self.first, rows = self.part(part, most)
            with T.serial(HALVES) as half, T.serial(self.runs) as c:
                self.tiles(
                    self.first,
                    rows,
                    2,
                    lambda i: self.gate_or_up(i, task * HALVES + half, half),
                    c,
                    most,
                )
            with T.serial(rows) as row:
                halves = [
                    vector.in_order(activated(self.totals, row, 2 * i * LANES, LANES))
                    for i in range(HALVES)
                ]
                quantize_group(halves, self.factor, out, self.first + row, task)

    def gate_or_up(self, i: Expr, block: Expr, half: Expr) -> tuple[Expr, Expr]:
        """Gate's block (i = 0) or up's, and the column of its totals."""
        return T.Bind(i * (self.blocks // 2) + block), (2 * half + i) * LANES

    def total_at(self, row: Expr, column: Expr) -> tuple[Expr, Expr]:
        return row - self.first, self.lanes(column)
