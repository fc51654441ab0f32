"""w4z: 4 bits a weight, and an f16 scale and a whole zero point for each group of 32 columns: 4.75
bits, what AWQ and asymmetric GPTQ hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.base import GroupTensor, Parts, Stored, widened
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.formats.weights.lines import CUTS, LineLoss, divided, halves, steps
from minicpm_mlc.ops.formats.weights.nibbles import Nibbles
from minicpm_mlc.ops.tir import Expr, T, splat

LARGEST = 15  # value and zero point


@dataclass(frozen=True)
class W4Z(GroupScheme):
    """w = scale * (value - zero), value and zero 0..15. Kernels read it as a minimum of
    -scale * zero, which float32 holds exactly and f16 doesn't.
    """

    name = "w4z"
    values = Nibbles(zero=0)
    has_minimum = leveled = True
    tables = "w8"

    @property
    def group_tensors(self) -> tuple[GroupTensor, ...]:
        return (
            GroupTensor("scale", "float16", self.group, usual=(0.004, 0.02)),
            GroupTensor("zero", "uint8", self.group, usual=(0, LARGEST + 1)),
        )

    def lines(self, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
        scale = parts["scale"].astype(np.float32)
        return scale, -scale * parts["zero"]

    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        """Of the zero points that CUTS of the range, with 0 in it, lead to, the best."""
        low = np.minimum(groups.min(0), 0)
        step = (np.maximum(groups.max(0), 0) - low) / np.float32(LARGEST)
        scale, zero, least = halves(step), np.zeros_like(low), np.full_like(low, np.inf)
        for below, over in CUTS:
            shortened = step * np.float32(1 - (below + over) / LARGEST)
            tried = _nearest_zero(low + step * np.float32(below), shortened)
            numbers = steps(groups + shortened * tried, shortened, 0, LARGEST) - tried
            loss = LineLoss.of(groups, numbers, importance)
            best = halves(loss.scale_for(0.0))
            value = loss.value(best.astype(np.float32), None)
            better = value < least
            for kept, found in zip((scale, zero, least), (best, tried, value), strict=True):
                np.copyto(kept, found, where=better)
        return {"scale": scale, "zero": zero.astype(np.uint8)}

    def kept(self, loss: LineLoss, fitted: Parts) -> Parts:
        """The zero point nearest to the best line's, and the best scale beside it."""
        scale = loss.scale(fitted["scale"])
        zero = _nearest_zero(loss.minimum_for(scale), scale)
        size = loss.size - zero * (2 * loss.shared - zero * loss.ones)
        best = divided(loss.along - zero * loss.shift, size)
        return {"scale": halves(best), "zero": zero.astype(np.uint8)}

    def minimum(self, stored: Stored, block: Expr, group: Expr, lane: Expr, lanes: int) -> Expr:
        zero = widened(stored["zero"][block, group, lane], lanes)
        scale = self.scale(stored, block, group, lane, lanes)
        return scale * (zero * splat(T.float32(-1), lanes))


def _nearest_zero(minimum: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The whole number, as float32, whose line has the minimum nearest to this one."""
    return np.clip(np.rint(divided(-minimum, scale)), 0, LARGEST).astype(np.float32)


SCHEME = W4Z()
