"""w6: 6 bits a weight, symmetric around zero, scales of 8 bits for each 16 columns in blocks of
256: 6.56 bits, what llama.cpp's Q6_K holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import GroupTensor, Parts, Stored
from minicpm_mlc.ops.formats.weights.high_bits import HighBits
from minicpm_mlc.ops.formats.weights.levels import BLOCK, LevelScheme
from minicpm_mlc.ops.formats.weights.lines import best_scale
from minicpm_mlc.ops.tir import Expr

EXTREMES = (-32.0, -32.5, -31.5, -33.0, -31.0)  # numbers that the largest weight is tried at


@dataclass(frozen=True)
class W6(LevelScheme):
    """w = scale * (value - 32), value 0..63, scale = unit * level, level -128..127."""

    name = "w6"
    values = HighBits(bits=6, zero=32)
    level_type = np.int8
    largest_level = 127
    tables = None
    group: int = GROUP // 2

    @property
    def group_tensors(self) -> tuple[GroupTensor, ...]:
        return (
            GroupTensor("scale", "float16", BLOCK, usual=(1e-5, 6e-5)),
            GroupTensor("levels", "int8", self.group, usual=(-127, 128)),
        )

    def first_lines(self, groups: np.ndarray, importance: np.ndarray | None) -> Parts:
        return {"scale": best_scale(groups, importance, self.limits, EXTREMES, np.float32)}

    def levels_stored(self, scale: np.ndarray, minimum: np.ndarray | None = None) -> np.ndarray:
        return np.ascontiguousarray(scale)

    def levels_of(self, parts: Parts) -> tuple[np.ndarray, None]:
        return parts["levels"], None

    def scale(self, stored: Stored, block: Expr, group: Expr, lane: Expr, lanes: int) -> Expr:
        level = stored["levels"][block, group, lane]
        return self.in_unit(stored["scale"], level, block, group, lane, lanes)


SCHEME = W6()
