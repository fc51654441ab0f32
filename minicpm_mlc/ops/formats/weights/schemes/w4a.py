"""w4a: 4 bits a weight, and an f16 scale and an f16 minimum for each group of 32 columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.groups import GroupScheme, divided, halves, steps
from minicpm_mlc.ops.formats.weights.nibbles import Nibbles

# Parts of a group's range that the 15 steps are tried over: cutting its ends off makes the steps
# smaller for all other weights. The line of least squares through the best assignment is stored.
PARTS = (1.0, 0.95, 0.9)


@dataclass(frozen=True)
class W4A(GroupScheme):
    """w = scale * value + minimum, value = round((w - minimum) / scale) in 0..15."""

    name = "w4a"
    values = Nibbles(zero=0)
    has_minimum = True
    tables = "w8"

    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        """Of the lines for PARTS, the one of least squared error."""
        low, high = groups.min(0), groups.max(0)
        middle, reach = (low + high) / 2, (high - low) / 2
        best = {"scale": halves(reach / np.float32(7.5)), "minimum": halves(low)}
        least = np.full_like(low, np.inf)
        for part in PARTS:
            shortened = reach * np.float32(part)
            values = steps(groups - (middle - shortened), shortened / np.float32(7.5), 0, 15)
            line = _line(values, groups, importance)
            error = (self.restored(values, line) - groups) ** 2
            error = (error if importance is None else error * importance).sum(0)
            better = error < least
            for name, numbers in line.items():
                np.copyto(best[name], numbers, where=better)
            np.copyto(least, error, where=better)
        return best


def _line(values: np.ndarray, groups: np.ndarray, importance: np.ndarray | None) -> Parts:
    """The line that brings values closest to weights."""
    share = 1 / np.float32(len(values)) if importance is None else importance / importance.sum(0)
    values_mean, weights_mean = ((v * share).sum(0) for v in (values, groups))
    centred = values - values_mean
    counted = centred * share
    along, size = (np.einsum("kg,kg->g", v, counted) for v in (groups, centred))
    scale = divided(along, size)
    return {"scale": halves(scale), "minimum": halves(weights_mean - scale * values_mean)}


SCHEME = W4A()
