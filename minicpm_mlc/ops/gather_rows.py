"""Pick rows of a matrix: the hidden states whose logits are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.ops.operator import EXACT, Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, ids, sample


def gather_rows_definition(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """x [n, h], rows [m] -> x[rows], [m, h]."""
    return x[rows]


@dataclass(frozen=True)
class GatherRows(Operator):
    """Rows of `hidden` numbers."""

    grid_limit: ClassVar[float] = EXACT
    hidden: int

    def arguments(self) -> dict[str, Argument]:
        return {
            "x": takes("float32", "n", self.hidden),
            "rows": takes("int32", "m"),
            "out": gives("float32", "m", self.hidden),
        }

    def define(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return gather_rows_definition(x, rows)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(4):
            rows = draw.below(n, 5) if draw.whole else ids(3, 0, 0)
            yield sample(draw.normal(n, self.hidden), rows)

    @classmethod
    def variants(cls) -> Iterator[GatherRows]:
        yield from (cls(width) for width in (32, 96, 1056))
