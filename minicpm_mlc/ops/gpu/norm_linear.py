"""RMSNorm, the rounding to int8 and a product in one launch, where one row of x streams the weights
past it: every workgroup normalises the row. More rows are normalised by a launch of their own.
"""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.int8_matrix import HELD
from minicpm_mlc.ops.gpu.kernel import barrier, shared, workgroups
from minicpm_mlc.ops.gpu.linear_int8 import LinearCall, Rows
from minicpm_mlc.ops.gpu.linear_swiglu import Gated
from minicpm_mlc.ops.gpu.rms_norm import WIDE, Normalised
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.norm_linear import NormLinearInt8, NormLinearSwigluInt8
from minicpm_mlc.ops.tir import Buffer, Expr, T


def norm_linear_int8(
    operator: NormLinearInt8,
    traits: GpuTraits,
    dims: Dims,
    x: Buffer,
    norm: Buffer,
    *rest: Buffer,
) -> None:
    """Raises CompileError as linear_int8 does."""
    rows = NormedRows(operator, traits, dims.m, x, norm)
    LinearCall(operator, traits, dims.m, rows, rest).emit()


def norm_linear_swiglu_int8(
    operator: NormLinearSwigluInt8,
    traits: GpuTraits,
    dims: Dims,
    x: Buffer,
    norm: Buffer,
    *rest: Buffer,
) -> None:
    """Raises CompileError as linear_swiglu_int8 does."""
    rows = NormedRows(operator, traits, dims.m, x, norm)
    Gated(operator, traits, dims.m, rows, rest).emit()


class NormedRows(Rows):
    """Rows that are normalised here; their words lie in shared memory, or in the device's."""

    def __init__(
        self,
        operator: NormLinearInt8 | NormLinearSwigluInt8,
        traits: GpuTraits,
        m: Expr,
        x: Buffer,
        norm: Buffer,
    ) -> None:
        self.rows, self.weight, self.groups = x, norm, operator.k // 32
        self.norm = Normalised(operator.k, operator.eps, operator.sum_factor, traits)
        self.words = T.alloc_buffer((m, self.groups, HELD), "int32")
        super().__init__(self.words, m, traits)

    def threads(self, traits: GpuTraits) -> int:
        return WIDE

    def prepare(self, m: Expr) -> None:
        with workgroups(m, WIDE) as (row, thread):
            self.norm.write(self.rows, row, self.weight, thread, self.words, row)

    def of_one(self, thread: Expr) -> Buffer:
        held = shared((1, self.groups, HELD), "int32")
        self.norm.write(self.rows, T.int32(0), self.weight, thread, held, T.int32(0))
        barrier()
        return held
