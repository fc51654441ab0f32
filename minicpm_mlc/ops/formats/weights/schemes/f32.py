"""f32: weights as the checkpoint's arithmetic has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.floats import FloatScheme, FloatValues
from minicpm_mlc.ops.tir import Expr, T


class Float32Values(FloatValues):
    """float32."""

    bits = 32
    dtype = written_as = "float32"

    def numbers(self, values: np.ndarray) -> np.ndarray:
        return values

    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.float32(0.1) * rng.standard_normal(shape, np.float32)

    def widened(self, value: Expr, lanes: int) -> Expr:
        return value

    def word(self, read: Callable[[Expr], Expr], step: Expr) -> list[list[Expr]]:
        return [[T.Bind(T.reinterpret(read(step), dtype="float32"))]]


@dataclass(frozen=True)
class F32(FloatScheme):
    """32 bits a weight, exact."""

    name = "f32"
    values = Float32Values()

    def cast(self, weights: np.ndarray) -> np.ndarray:
        return weights


SCHEME = F32()
