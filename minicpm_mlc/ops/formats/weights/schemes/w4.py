"""w4: 4 bits a weight, symmetric around zero, and an f16 scale for each group of 32 columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.groups import GroupScheme, divided, halves, steps
from minicpm_mlc.ops.formats.weights.nibbles import Nibbles

# Steps that the largest weight of a group is tried at; the best assignment's least-squares scale is
# stored: 7 % less squared error on normal weights than -8 alone, within 0.3 % of the best that one
# scale per group can do.
EXTREMES = (-8.0, -8.375, -7.625, -8.75, -7.25, -9.125, -6.875, -9.5, -6.5)


@dataclass(frozen=True)
class W4(GroupScheme):
    """w = scale * (value - 8), value = round(w / scale) + 8 in 0..15: GPTQ's convention."""

    name = "w4"
    values = Nibbles(zero=8)
    tables = "w8"  # a 4-bit head moves the answers more than all 4-bit linears (docs/quality.md)

    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        """Steps q of weights w ask for the scale s = w q / q q and leave the error w w - s (2 w q -
        s q q).
        """
        high, low = groups.max(0), groups.min(0)
        extreme = np.where(high > -low, high, low)
        best = halves(extreme / np.float32(EXTREMES[0]))
        explained = np.full_like(extreme, -np.inf)
        for target in EXTREMES:
            q = steps(groups, extreme / np.float32(target), *self.limits)
            counted = q if importance is None else q * importance
            along, size = (np.einsum("kg,kg->g", v, counted) for v in (groups, q))
            scale = halves(divided(along, size))
            gain = scale * (2 * along - scale * size)
            better = gain > explained
            np.copyto(best, scale, where=better)
            np.copyto(explained, gain, where=better)
        return {"scale": best}


SCHEME = W4()
