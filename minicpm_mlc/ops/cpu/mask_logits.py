"""Logits under a grammar."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.cpu.vector import LANES
from minicpm_mlc.ops.mask_logits import BITS, LOWEST, MaskLogits
from minicpm_mlc.ops.tir import Buffer, Expr, T


def mask_logits(
    operator: MaskLogits, _: CpuTraits, dims: Dims, mask: Buffer, logits: Buffer
) -> None:
    """A row a task; half a word of the mask meets a vector of logits."""

    def row(r: Expr) -> None:
        with T.serial(operator.columns // LANES) as j:
            first = T.Bind(j * LANES)
            word = T.broadcast(T.Bind(mask[r, first // BITS]), LANES)
            places = T.broadcast(first % BITS, LANES) + T.ramp(0, 1, LANES)
            bits = T.bitwise_and(T.shift_right(word, places), T.broadcast(1, LANES))
            allowed = bits.equal(T.broadcast(1, LANES))
            value = T.Select(allowed, vector.load(logits, r, first), vector.splat(LOWEST))
            vector.store(logits, value, r, first)

    vector.spread(dims.n, row, serial_below=3)
