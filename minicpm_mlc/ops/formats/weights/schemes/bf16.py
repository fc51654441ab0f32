"""bf16: weights rounded to bfloat16, stored as its bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.floats import FloatScheme, FloatValues, halves
from minicpm_mlc.ops.gpu.float16_bits import from_bfloat16
from minicpm_mlc.ops.tir import Expr, T, splat, typed


class Bfloat16Values(FloatValues):
    """bfloat16, as uint16 bits: neither NumPy nor many processors have the type."""

    bits = 16
    dtype = "uint16"
    written_as = "bfloat16"

    def numbers(self, values: np.ndarray) -> np.ndarray:
        return (values.astype(np.uint32) << 16).view(np.float32)

    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return nearest(np.float32(0.1) * rng.standard_normal(shape, np.float32))

    def widened(self, value: Expr, lanes: int) -> Expr:
        sixteen = splat(T.uint32(16), lanes)
        bits = T.shift_left(T.Cast(typed("uint32", lanes), value), sixteen)
        return T.reinterpret(bits, dtype=typed("float32", lanes))

    def word(self, read: Callable[[Expr], Expr], step: Expr) -> list[list[Expr]]:
        return [[from_bfloat16(half) for half in halves(read(step))]]


@dataclass(frozen=True)
class BF16(FloatScheme):
    """16 bits a weight, 8 of them its precision."""

    name = "bf16"
    values = Bfloat16Values()

    def cast(self, weights: np.ndarray) -> np.ndarray:
        return nearest(weights)


def nearest(x: np.ndarray) -> np.ndarray:
    """uint16 bits of the bfloat16 nearest to float32 numbers, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


SCHEME = BF16()
