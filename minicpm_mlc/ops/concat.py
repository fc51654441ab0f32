"""Rows side by side: what an EAGLE head makes one input of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from minicpm_mlc.ops.operator import EXACT, Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, sample


def concat_definition(*parts: np.ndarray) -> np.ndarray:
    """parts [n, width] each -> [n, the sum of widths], the first part leftmost."""
    return np.concatenate(parts, -1)


@dataclass(frozen=True)
class Concat(Operator):
    """`parts` matrices of `width` columns."""

    grid_limit: ClassVar[float] = EXACT
    width: int
    parts: int

    def arguments(self) -> dict[str, Argument]:
        sources = {f"part{i}": takes("float32", "n", self.width) for i in range(self.parts)}
        return sources | {"out": gives("float32", "n", self.parts * self.width)}

    def define(self, *parts: np.ndarray) -> np.ndarray:
        return concat_definition(*parts)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(3):
            yield sample(*(draw.normal(n, self.width) for _ in range(self.parts)))

    @classmethod
    def variants(cls) -> Iterator[Concat]:
        yield from (cls(width, parts) for width, parts in product((32, 96, 1056), (2, 3)))
