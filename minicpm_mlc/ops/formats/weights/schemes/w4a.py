"""w4a: 4 bits a weight, and an f16 scale and an f16 minimum for each group of 32 columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.formats.weights.lines import best_line
from minicpm_mlc.ops.formats.weights.nibbles import Nibbles


@dataclass(frozen=True)
class W4A(GroupScheme):
    """w = scale * value + minimum, value = round((w - minimum) / scale) in 0..15."""

    name = "w4a"
    values = Nibbles(zero=0)
    has_minimum = True
    tables = "w8"

    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        """The line of least squared error, as far as a search finds it."""
        scale, minimum = best_line(groups, importance, 15, np.float16, ceiling=np.inf)
        return {"scale": scale, "minimum": minimum}


SCHEME = W4A()
