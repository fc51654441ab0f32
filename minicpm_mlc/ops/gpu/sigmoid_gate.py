"""A gate of attention's outputs."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.sigmoid_gate import SigmoidGate
from minicpm_mlc.ops.tir import Buffer, T

COLUMNS = 1024  # of a row, that one workgroup takes


def sigmoid_gate(
    operator: SigmoidGate, _: GpuTraits, dims: Dims, x: Buffer, gate: Buffer, out: Buffer
) -> None:
    """A workgroup takes 1,024 columns of a row."""
    parts = -(-operator.width // COLUMNS)
    with workgroups(dims.n * parts) as (group, thread):
        row, first = T.Bind(group // parts), T.Bind(group % parts * COLUMNS)
        with strided(T.min(operator.width - first, COLUMNS), thread) as i:
            closed = T.float32(1) + T.exp(-gate[row, first + i])
            T.buffer_store(out, x[row, first + i] / closed, [row, first + i])
