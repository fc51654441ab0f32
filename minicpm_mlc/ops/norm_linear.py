"""RMSNorm and the rounding to int8 together with the product that reads them: for devices where a
launch is dearer than normalising a row in every workgroup.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.operator import Argument, Operator, takes
from minicpm_mlc.ops.quantize_rows import ROUNDED, numbers_of, words_of
from minicpm_mlc.ops.rms_norm import rms_norm_definition
from minicpm_mlc.ops.samples import Draw, Sample
from minicpm_mlc.ops.weight_samples import MATRICES

LONGEST = 8192  # columns whose words fit in a workgroup's memory
PERIOD = 7  # of the norm's weights in samples, which are all different from 1
SCHEMES_TRIED = (("w4", -8), ("w4a", 1), ("w8", 0))  # with what their sums are multiplied by


def normed_numbers(x: np.ndarray, norm: np.ndarray, eps: float) -> np.ndarray:
    """x [m, k], norm [k] -> float64 [m, k]: what the rounded RMSNorm stands for."""
    return numbers_of(words_of(rms_norm_definition(x, norm, eps).astype(np.float32), 0))


def sampled_norm(k: int) -> Tiled:
    """The norm's weights, float32 [k], in every sample."""
    return Tiled((np.arange(PERIOD, dtype=np.float32) - 2.5) / 4, (k,))


class _Normalising(Operator):
    """What an operator of int8 activations [m, k] becomes: it takes rows, and weights of a norm."""

    k: int
    eps: float

    def arguments(self) -> dict[str, Argument]:
        first = {"x": takes("float32", "m", self.k), "norm": takes("float32", self.k)}
        others = {name: each for name, each in super().arguments().items() if name != "x"}
        return first | others

    def numbers(self, x: np.ndarray) -> np.ndarray:
        return normed_numbers(x, sampled_norm(self.k).array(), self.eps)

    def drawn(self, draw: Draw, m: int) -> Tiled:
        return draw.normal(m, self.k, scale=5)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for each in super().samples(draw):
            x, *others = each.inputs
            yield Sample([x, sampled_norm(self.k), *others], each.outputs)

    def fits(self, traits: Any) -> bool:
        return super().fits(traits) and traits.normalises and self.k <= LONGEST


@dataclass(frozen=True)
class NormLinearInt8(_Normalising, LinearInt8):
    """LinearInt8 of RmsNormInt8."""

    limit: ClassVar[float] = ROUNDED
    grid_limit: ClassVar[float] = ROUNDED
    eps: float = field(kw_only=True)

    def define(self, x: np.ndarray, norm: np.ndarray, *others: np.ndarray) -> np.ndarray:
        return self.product(normed_numbers(x, norm, self.eps), *others)

    @classmethod
    def variants(cls) -> Iterator[NormLinearInt8]:
        n, k, residual = MATRICES[1]
        for name, factor in SCHEMES_TRIED:
            scheme = SCHEMES[name].beside("int8")
            yield cls(n, k, scheme, residual, 0.25, sum_factor=factor, eps=1e-6)


@dataclass(frozen=True)
class NormLinearSwigluInt8(_Normalising, LinearSwigluInt8):
    """LinearSwigluInt8 of RmsNormInt8."""

    eps: float

    def define(self, x: np.ndarray, norm: np.ndarray, *stored: np.ndarray) -> np.ndarray:
        return self.product(normed_numbers(x, norm, self.eps), *stored)

    @classmethod
    def variants(cls) -> Iterator[NormLinearSwigluInt8]:
        for name, factor in SCHEMES_TRIED:
            yield cls(96, 1088, SCHEMES[name].beside("int8"), factor, 1e-6)
