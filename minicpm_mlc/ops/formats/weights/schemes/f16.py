"""f16: weights rounded to float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.floats import FloatScheme, FloatValues, halves
from minicpm_mlc.ops.gpu.intrinsics import half_bits_to_float
from minicpm_mlc.ops.tir import Expr, T, typed


class Float16Values(FloatValues):
    """float16."""

    bits = 16
    dtype = written_as = "float16"

    def numbers(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)

    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return (0.1 * rng.standard_normal(shape, np.float32)).astype(np.float16)

    def widened(self, value: Expr, lanes: int) -> Expr:
        return T.Cast(typed("float32", lanes), value)

    def word(self, read: Callable[[Expr], Expr], step: Expr) -> list[list[Expr]]:
        return [[half_bits_to_float(half) for half in halves(read(step))]]


@dataclass(frozen=True)
class F16(FloatScheme):
    """16 bits a weight, 11 of them its precision; up to 65504."""

    name = "f16"
    values = Float16Values()

    def cast(self, weights: np.ndarray) -> np.ndarray:
        return weights.astype(np.float16)


SCHEME = F16()
