"""w4a: 4 bits a weight, and an f16 scale and an f16 minimum for each group of 32 columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.groups import GroupScheme, steps
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

    def quantize_groups(self, groups: np.ndarray) -> Parts:
        scale, minimum = _best_line(groups)
        values = steps(groups - minimum.astype(np.float32), scale, 0, 15)
        return {"weight": values.astype(np.uint8), "scale": scale, "minimum": minimum}


def _best_line(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f16 scales and minimums [groups]: of the lines for PARTS, the one of least squared error."""
    low, high = groups.min(0), groups.max(0)
    middle, reach = (low + high) / 2, (high - low) / 2
    best_scale, best_minimum = (reach / np.float32(7.5)).astype(np.float16), low.astype(np.float16)
    least = np.full_like(low, np.inf)
    for part in PARTS:
        shortened = reach * np.float32(part)
        values = steps(groups - (middle - shortened), shortened / np.float32(7.5), 0, 15)
        scale, minimum = _line(values, groups)
        error = ((values * scale + minimum - groups) ** 2).sum(0)
        better = error < least
        np.copyto(best_scale, scale, where=better, casting="same_kind")
        np.copyto(best_minimum, minimum, where=better, casting="same_kind")
        np.copyto(least, error, where=better)
    return best_scale, best_minimum


def _line(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum [groups], float32 rounded to f16, that bring values closest to weights."""
    values_mean, weights_mean = values.mean(0), groups.mean(0)
    centred = values - values_mean
    along, size = (np.einsum("kg,kg->g", centred, v) for v in (groups, centred))
    scale = np.divide(along, size, out=np.zeros_like(along), where=size != 0)
    minimum = weights_mean - scale * values_mean
    return _halves(scale), _halves(minimum)


def _halves(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float16).astype(np.float32)


SCHEME = W4A()
