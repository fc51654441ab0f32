"""The gate and up product, SwiGLU and the rounding to int8 in one: what the down product reads.

A task owns 32 columns of gate and up, so that their sums never leave its core's cache: at 16,384
columns a prefill would write and read 128 KiB a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.cpu.kernel import kernel
from minicpm_mlc.ops.cpu.linear_int8 import CACHE_ROWS, LinearInt8, linear_int8_definition
from minicpm_mlc.ops.cpu.quantize_rows import (
    quantize_group,
    quantized_shape,
    rounded_rows_definition,
)
from minicpm_mlc.ops.cpu.swiglu import activated
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.swiglu import swiglu_definition
from minicpm_mlc.ops.tir import Buffer

HALVES = GROUP // LANES  # weight blocks of gate, and of up, per task
FEW_ROWS = 3  # their totals fill less than the 1 KiB that TVM leaves on the stack


def linear_swiglu_int8_definition(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [m, k] and w [2 I, k] dequantised, gate first -> float64 [m, I], what the rounded SwiGLU
    stands for.
    """
    return rounded_rows_definition(
        swiglu_definition(linear_int8_definition(x, w)).astype(np.float32)
    )


class _LinearSwiglu(LinearInt8):
    """`totals` of a task: one part's rows of gate's and up's 32 columns, 16 of gate, 16 of up, and
    so on.
    """

    first: Any

    def __init__(self, intermediate: int, k: int, scheme: Scheme, dot: str, factor: int) -> None:
        super().__init__(2 * intermediate, k, scheme, dot, 1.0)
        self.tasks, self.factor = intermediate // GROUP, factor

    def emit_into(self, out: Any) -> None:
        """Few rows apart: their totals fit the stack. From TVM's pool a decode step's would cost 15
        % of its time.
        """
        with T.If(self.m <= FEW_ROWS):
            with T.Then():
                self.emit_parts(FEW_ROWS, out)
            with T.Else():
                self.emit_parts(CACHE_ROWS, out)

    def emit_parts(self, most: int, out: Any) -> None:
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
                halves = [activated(self.totals, row, 2 * i * LANES, LANES) for i in range(HALVES)]
                quantize_group(halves, self.factor, out, self.first + row, task)

    def gate_or_up(self, i: Any, block: Any, half: Any) -> tuple[Any, Any]:
        """Gate's block (i = 0) or up's, and the column of its totals."""
        return T.Bind(i * (self.blocks // 2) + block), (2 * half + i) * LANES

    def total_at(self, row: Any, column: Any) -> tuple[Any, Any]:
        return row - self.first, column


def linear_swiglu_int8(intermediate: int, k: int, scheme: Scheme, dot: str, factor: int) -> Any:
    """PrimFunc (x int32[m, k/32, 10] of quantize_rows, the weight's stored tensors) -> int32[m,
    intermediate/32, 10], the same way.

    The weight is [2 * intermediate, k], gate first, as linear_int8 takes it; `factor` is that of
    quantize_rows before the next product. Raises CompileError when intermediate isn't a multiple
    of 32.
    """
    if intermediate % GROUP:
        raise CompileError(
            f"intermediate_size is {intermediate}; int8 activations need a multiple of {GROUP}"
        )
    loops = _LinearSwiglu(intermediate, k, scheme, dot, factor)
    stored = scheme.arguments(2 * intermediate, k)

    def emit(dims: Any, x: Buffer, *rest: Buffer) -> None:
        *tensors, out = rest
        loops.m, loops.x, loops.residual = dims.m, x, None
        loops.stored = dict(zip(stored, tensors, strict=True))
        loops.emit_into(out)

    arguments = {
        "x": ("int32", *quantized_shape("m", k)),
        **stored,
        "out": ("int32", *quantized_shape("m", intermediate)),
    }
    return kernel("linear_swiglu_int8", arguments, emit)
