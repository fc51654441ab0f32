"""w8: 8 bits a weight, symmetric around zero, and an f16 scale for each group of 32 columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.formats.weights.int8 import Int8Values
from minicpm_mlc.ops.formats.weights.lines import halves


@dataclass(frozen=True)
class W8(GroupScheme):
    """w = scale * value, value = round(w / scale) in -127..127."""

    name = "w8"
    values = Int8Values()

    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        """The largest weight is the last step, whatever the importance."""
        largest = np.maximum(groups.max(0), -groups.min(0))
        return {"scale": halves(largest / 127)}


SCHEME = W8()
