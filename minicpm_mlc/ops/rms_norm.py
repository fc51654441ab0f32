"""RMSNorm, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import word_values
from minicpm_mlc.ops.operator import Argument, Operator, gives, takes
from minicpm_mlc.ops.quantize_rows import FACTORS, ROUNDED, gives_words, words_of
from minicpm_mlc.ops.samples import Draw, Sample, sample
from minicpm_mlc.ops.weight_samples import reads_sums


def rms_norm_definition(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x [n, h], weight [h] -> x / sqrt(mean(x^2) + eps) * weight, float64 [n, h]."""
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight.astype(np.float64)


@dataclass(frozen=True)
class RmsNorm(Operator):
    """Rows of `hidden` numbers, each divided by its root mean square."""

    hidden: int
    eps: float

    def arguments(self) -> dict[str, Argument]:
        return {
            "x": takes("float32", "n", self.hidden),
            "weight": takes("float32", self.hidden),
            "out": gives("float32", "n", self.hidden),
        }

    def define(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return rms_norm_definition(x, weight, self.eps)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(2):
            yield sample(draw.normal(n, self.hidden, scale=5), draw.normal(self.hidden))

    @classmethod
    def variants(cls) -> Iterator[RmsNorm]:
        yield from (cls(width, 1e-6) for width in (32, 96, 1056))


@dataclass(frozen=True)
class RmsNormInt8(RmsNorm):
    """RmsNorm and QuantizeRows with this `sum_factor` in one."""

    limit: ClassVar[float] = ROUNDED
    grid_limit: ClassVar[float] = ROUNDED
    sum_factor: int

    def arguments(self) -> dict[str, Argument]:
        return super().arguments() | {"out": gives_words(self.hidden, rows="n")}

    def define(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return words_of(super().define(x, weight).astype(np.float32), self.sum_factor)

    def outcome(self, arguments: Any) -> np.ndarray:
        return word_values(arguments[-1])

    def fits(self, traits: Any) -> bool:
        return reads_sums(traits, self.sum_factor)

    @classmethod
    def variants(cls) -> Iterator[RmsNormInt8]:
        yield from (cls(width, 1e-6, factor) for width in (96, 1056) for factor in FACTORS)
