"""One row under every row of another matrix: a bias, ready to be a linear's residual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.ops.operator import EXACT, Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, Tiled


def repeat_row_definition(row: np.ndarray, n: int) -> np.ndarray:
    """row [h] -> n copies of it, [n, h]."""
    return np.tile(row, (n, 1))


@dataclass(frozen=True)
class RepeatRow(Operator):
    """A row of `width` numbers. How often it is repeated, n, is the output's own dimension."""

    grid_limit: ClassVar[float] = EXACT
    width: int

    def arguments(self) -> dict[str, Argument]:
        return {
            "row": takes("float32", self.width),
            "out": gives("float32", "n", self.width),
        }

    def define(self, row: np.ndarray) -> np.ndarray:
        raise TypeError("the number of rows is the output's; see samples")

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(3):
            row = draw.normal(self.width)
            yield Sample([row], [Tiled.whole(repeat_row_definition(row.array(), n))])

    @classmethod
    def variants(cls) -> Iterator[RepeatRow]:
        yield from (cls(width) for width in (32, 96, 1056))
