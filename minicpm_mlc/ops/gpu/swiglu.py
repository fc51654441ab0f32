"""SwiGLU's activation."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.swiglu import Swiglu
from minicpm_mlc.ops.tir import Buffer, Expr, T

COLUMNS = 1024  # of a row, that one workgroup takes


def swiglu(operator: Swiglu, _: GpuTraits, dims: Dims, gate_up: Buffer, out: Buffer) -> None:
    """A workgroup takes 1,024 columns of a row."""
    intermediate = operator.intermediate
    parts = -(-intermediate // COLUMNS)
    with workgroups(dims.n * parts) as (group, thread):
        row, first = T.Bind(group // parts), T.Bind(group % parts * COLUMNS)
        with strided(T.min(intermediate - first, COLUMNS), thread) as i:
            gate = T.Bind(gate_up[row, first + i])
            up = gate_up[row, intermediate + first + i]
            T.buffer_store(out, silu(gate) * up, [row, first + i])


def silu(gate: Expr) -> Expr:
    """gate * sigmoid(gate); `gate` is bound."""
    return gate / (T.float32(1) + T.exp(-gate))
