"""Logits under a grammar."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import strided, workgroups
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.mask_logits import BITS, LOWEST, MaskLogits
from minicpm_mlc.ops.tir import Buffer, T


def mask_logits(
    operator: MaskLogits, _: GpuTraits, dims: Dims, mask: Buffer, logits: Buffer
) -> None:
    """A row a workgroup."""
    with workgroups(dims.n) as (row, thread), strided(operator.columns, thread) as i:
        bit = T.bitwise_and(T.shift_right(mask[row, i // BITS], i % BITS), 1)
        with T.If(bit.equal(0)), T.Then():
            T.buffer_store(logits, constant(LOWEST), [row, i])
