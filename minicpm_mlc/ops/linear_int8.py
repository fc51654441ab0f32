"""linear with int8 activations: integer dot products per group of 32 columns, scaled and summed in
float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.linear import Linear, linear_definition
from minicpm_mlc.ops.operator import Argument, Cost, Extent
from minicpm_mlc.ops.quantize_rows import (
    FACTORS,
    numbers_of,
    quantized_shape,
    rounded_rows_definition,
    takes_words,
    words_of,
)
from minicpm_mlc.ops.samples import Draw
from minicpm_mlc.ops.weight_samples import MATRICES, schemes_of_int8

PERIOD = 7 * GROUP  # numbers in a row of activations that differ: whole groups


def linear_int8_definition(
    x: np.ndarray, w: np.ndarray, residual: np.ndarray | None = None, scale: float = 1.0
) -> np.ndarray:
    """linear_definition with x [m, k] rounded to int8 as quantize_rows does; w [n, k] dequantised
    -> float64 [m, n].
    """
    return linear_definition(rounded_rows_definition(x), w, residual, scale)


@dataclass(frozen=True)
class LinearInt8(Linear):
    """Linear whose x are words of quantize_rows with this `sum_factor`; `scheme` is laid out for
    int8 activations.
    """

    sum_factor: int = field(kw_only=True)

    def activations(self) -> Argument:
        return takes_words(self.k)

    def numbers(self, x: np.ndarray) -> np.ndarray:
        return numbers_of(x)

    def drawn(self, draw: Draw, m: int) -> Tiled:
        return drawn_words(draw, m, self.k, self.sum_factor)

    def fits(self, traits: Any) -> bool:
        return traits.sum_factor(self.scheme) == self.sum_factor

    @classmethod
    def variants(cls) -> Iterator[LinearInt8]:
        for scheme in schemes_of_int8():
            for factor in FACTORS:
                for n, k, residual in MATRICES[:2]:
                    yield cls(n, k, scheme, residual, 0.25, sum_factor=factor)

    def cost(self, extent: Extent) -> Cost:
        return replace(super().cost(extent), int8=True)


def drawn_words(draw: Draw, m: int, k: int, factor: int) -> Tiled:
    """Activations [m, k] as quantize_rows writes them."""
    tile = draw.normal(m, k, period=PERIOD).tile
    return Tiled(words_of(tile, factor), quantized_shape(m, k))
