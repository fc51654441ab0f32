"""Activations rounded to int8 per row and group of 32 columns.

A group is ten int32 words that a kernel broadcasts one by one: eight of four int8 values each, the
scale's float32 bits, and factor * (sum of the values). The factor is what the weights need
(ops/int8_sums.py): one that takes their zero point out of the integer product, or, where the sum
meets their minimum, 1 or the group's scale (SCALED: the product's float32 bits). TWO_SUMS counts
the last 16 values so many times, and the first ones once: either sum can be told from the word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.bundle.kernel_cases import WORDS
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.operator import EXACT, Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, sample
from minicpm_mlc.ops.weight_samples import reads_sums

SCALE, SUM = 8, 9  # places of a group's scale and sum in its words
LARGEST = 127  # of an int8 value: symmetric, so that a value can change its sign
SMALLEST = 2.0**-100  # a group below it is zeros: 127 / |x| would overflow
TWO_SUMS = 1 << 12  # more than twice the largest sum of 16 values
SCALED = 2  # the sum is multiplied by the group's scale: no other factor is 2
FACTORS = (0, -8, -128, 1, SCALED, TWO_SUMS)  # that weights need
ROUNDED = 1e-5  # NMSE: a value between two int8 numbers may go either way


def quantize_rows_definition(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x f32[m, k] -> (int8[m, k], scale f32[m, k/32]): round(x / scale) with scale = max|x| / 127
    of the group.
    """
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(-1)
    inverse = np.divide(
        np.float32(LARGEST), largest, out=np.zeros_like(largest), where=largest >= SMALLEST
    )
    values = np.rint(groups * inverse[..., None]).astype(np.int8)
    return values.reshape(x.shape), largest / np.float32(LARGEST)


def rounded_rows_definition(x: np.ndarray) -> np.ndarray:
    """x f32[m, k] -> float64 [m, k]: the numbers that its quantised form stands for."""
    values, scale = quantize_rows_definition(x)
    return values * np.repeat(scale.astype(np.float64), GROUP, axis=1)


def words_of(x: np.ndarray, factor: int) -> np.ndarray:
    """x f32[m, k] quantised, as words int32[m, k/32, 10]."""
    values, scale = quantize_rows_definition(x)
    groups = values.reshape(len(x), -1, GROUP)
    words = np.empty((*groups.shape[:2], WORDS), np.int32)
    words[..., :SCALE] = groups.view(np.int32)
    words[..., SCALE] = scale.view(np.int32)
    sums = groups @ np.repeat(np.array(factors_of(factor), np.int32), GROUP // 2)
    words[..., SUM] = (sums.astype(np.float32) * scale).view(np.int32) if factor == SCALED else sums
    return words


def factors_of(factor: int) -> tuple[int, int]:
    """The whole numbers that a group's first and last 16 values are multiplied by in its sum."""
    if factor == SCALED:
        return 1, 1
    return (1, TWO_SUMS) if factor == TWO_SUMS else (factor, factor)


def numbers_of(words: np.ndarray) -> np.ndarray:
    """The numbers that words int32[m, k/32, 10] stand for, float64 [m, k]."""
    scale = words[..., SCALE : SCALE + 1].view(np.float32).astype(np.float64)
    values = np.ascontiguousarray(words[..., :SCALE]).view(np.int8)
    return (values * scale).reshape(len(words), -1)


def quantized_shape(m: int, k: int) -> tuple[int, int, int]:
    """Shape of the int32 words of x [m, k]."""
    return m, k // GROUP, WORDS


def takes_words(k: int) -> Argument:
    """Activations [m, k] that were quantised before."""
    return takes("int32", "m", k // GROUP, WORDS)


def gives_words(k: int, rows: str = "m") -> Argument:
    """Activations [rows, k] quantised."""
    return gives("int32", rows, k // GROUP, WORDS, words=True)


@dataclass(frozen=True)
class QuantizeRows(Operator):
    """Rows of `columns` numbers as the linears of int8 activations take them; `sum_factor` is what
    sums of a group are multiplied by. A NaN or infinity becomes its group's scale.
    """

    limit: ClassVar[float] = ROUNDED
    grid_limit: ClassVar[float] = EXACT
    columns: int
    sum_factor: int

    def arguments(self) -> dict[str, Argument]:
        return {"x": takes("float32", "m", self.columns), "out": gives_words(self.columns)}

    def define(self, x: np.ndarray) -> np.ndarray:
        return words_of(x, self.sum_factor)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for m in draw.rows(2):
            yield sample(draw.normal(m, self.columns))

    def fits(self, traits: Any) -> bool:
        return reads_sums(traits, self.sum_factor)

    @classmethod
    def variants(cls) -> Iterator[QuantizeRows]:
        yield from (cls(width, factor) for width in (96, 1056) for factor in FACTORS)
