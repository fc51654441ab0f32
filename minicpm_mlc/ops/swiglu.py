"""SwiGLU's activation: silu(gate) * up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.operator import Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, sample


def swiglu_definition(gate_up: np.ndarray) -> np.ndarray:
    """gate_up [n, 2 I], gate first -> gate / (1 + exp(-gate)) * up, float64 [n, I]."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


@dataclass(frozen=True)
class Swiglu(Operator):
    """Rows of gate and up, `intermediate` numbers each."""

    intermediate: int

    def arguments(self) -> dict[str, Argument]:
        return {
            "gate_up": takes("float32", "n", 2 * self.intermediate),
            "out": gives("float32", "n", self.intermediate),
        }

    def define(self, gate_up: np.ndarray) -> np.ndarray:
        return swiglu_definition(gate_up)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(2):
            yield sample(draw.normal(n, 2 * self.intermediate, scale=4))

    @classmethod
    def variants(cls) -> Iterator[Swiglu]:
        yield from (cls(width) for width in (32, 96, 1056))
