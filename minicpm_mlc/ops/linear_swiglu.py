"""The gate and up product, SwiGLU and the rounding to int8 in one: what the down product reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled, word_values
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.linear import linear_definition
from minicpm_mlc.ops.linear_int8 import drawn_words, linear_int8_definition
from minicpm_mlc.ops.operator import Argument, Cost, Extent, Operator, takes
from minicpm_mlc.ops.quantize_rows import (
    FACTORS,
    ROUNDED,
    gives_words,
    numbers_of,
    quantized_shape,
    rounded_rows_definition,
    takes_words,
    words_of,
)
from minicpm_mlc.ops.samples import Draw, Sample, sample
from minicpm_mlc.ops.swiglu import swiglu_definition
from minicpm_mlc.ops.weight_samples import (
    BLOCKS,
    SampleWeights,
    sample_weights,
    schemes_of_int8,
    stored_rows,
)


def linear_swiglu_int8_definition(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [m, k] and w [2 I, k] dequantised, gate first -> float64 [m, I], what the rounded SwiGLU
    stands for.
    """
    return rounded_rows_definition(
        swiglu_definition(linear_int8_definition(x, w)).astype(np.float32)
    )


@dataclass(frozen=True)
class LinearSwigluInt8(Operator):
    """The weight is [2 * intermediate, k], gate first, laid out for int8 activations. x and the
    output are words of quantize_rows with this `sum_factor`.
    """

    limit: ClassVar[float] = ROUNDED
    grid_limit: ClassVar[float] = ROUNDED
    intermediate: int
    k: int
    scheme: Scheme
    sum_factor: int

    @property
    def dtype_label(self) -> str:
        return self.scheme.name

    def arguments(self) -> dict[str, Argument]:
        stored = self.scheme.arguments(2 * self.intermediate, self.k)
        return {
            "x": takes_words(self.k),
            **{name: takes(*argument) for name, argument in stored.items()},
            "out": gives_words(self.intermediate),
        }

    def define(self, x: np.ndarray, *stored: np.ndarray) -> np.ndarray:
        return self.product(self.numbers(x), *stored)

    def product(self, x: np.ndarray, *stored: np.ndarray) -> np.ndarray:
        """What it gives for activations that stand for x [m, k]."""
        weights = stored_rows(self.scheme, 2 * self.intermediate, self.k, stored)
        return self.rounded(linear_definition(x, weights))

    def numbers(self, x: np.ndarray) -> np.ndarray:
        """What the activations stand for, [m, k]."""
        return numbers_of(x)

    def drawn(self, draw: Draw, m: int) -> Tiled:
        """m rows of activations as the kernel takes them."""
        return drawn_words(draw, m, self.k, self.sum_factor)

    def rounded(self, gate_up: np.ndarray) -> np.ndarray:
        """The words of SwiGLU of [m, 2 * columns]."""
        return words_of(swiglu_definition(gate_up).astype(np.float32), self.sum_factor)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        weights = sample_weights(draw, 2 * self.intermediate, self.k, self.scheme)
        for m in (1, *draw.rows(3, 19, most=3)):
            x = self.drawn(draw, m)
            inputs = [x, *weights.stored]
            yield sample(*inputs) if draw.whole else Sample(inputs, [self._answer(x, weights)])

    def _answer(self, x: Tiled, weights: SampleWeights) -> Tiled:
        """Two blocks of weight rows to a group of the output: then groups repeat."""
        products = linear_definition(self.numbers(x.array()), weights.rows)
        gate_up = Tiled(products, (len(products), 2 * self.intermediate)).array()
        halves = np.split(gate_up, 2, axis=1)
        first = np.concatenate([half[:, : BLOCKS * GROUP] for half in halves], axis=1)
        return Tiled(self.rounded(first), quantized_shape(len(products), self.intermediate))

    @classmethod
    def variants(cls) -> Iterator[LinearSwigluInt8]:
        for scheme in schemes_of_int8():
            yield from (cls(96, 1088, scheme, factor) for factor in FACTORS)

    def fits(self, traits: Any) -> bool:
        return traits.sum_factor(self.scheme) == self.sum_factor

    def outcome(self, arguments: Any) -> np.ndarray:
        return word_values(arguments[-1])

    def cost(self, extent: Extent) -> Cost:
        operations = 2 * extent.dims["m"] * self.k * 2 * self.intermediate
        return Cost(self.moved_bytes(extent.dims), operations, int8=True)

    def shape_label(self, extent: Extent) -> str:
        return f"{self.k} -> {2 * self.intermediate}"
