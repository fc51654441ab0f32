"""A gate of attention's outputs: x * sigmoid(gate)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.operator import Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, sample


@dataclass(frozen=True)
class SigmoidGate(Operator):
    """Rows of `width` numbers, and as many gates."""

    width: int

    def arguments(self) -> dict[str, Argument]:
        return {
            "x": takes("float32", "n", self.width),
            "gate": takes("float32", "n", self.width),
            "out": gives("float32", "n", self.width),
        }

    def define(self, x: np.ndarray, gate: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return x.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64)))

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(2):
            yield sample(draw.normal(n, self.width), draw.normal(n, self.width, scale=4))

    @classmethod
    def variants(cls) -> Iterator[SigmoidGate]:
        yield from (cls(width) for width in (32, 96, 1056))
