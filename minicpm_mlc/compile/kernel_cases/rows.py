"""Samples of the operators that work on rows of activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Expected, Tiled, word_values
from minicpm_mlc.compile.kernel_cases.sample import Sample, rows
from minicpm_mlc.ops.cpu.quantize_rows import quantize_rows_definition
from minicpm_mlc.ops.rms_norm import rms_norm_definition

LOGITS = 4099  # that differ; a larger vocabulary's are the same again: ties
ROUNDED = 1e-5  # a value between two int8 numbers may go either way


def rms_norm_int8(kernels: Any, hidden: int, eps: float, scheme: Any) -> Iterator[Sample]:
    x, weight = _normed(hidden)
    yield quantized(
        [x, weight], rms_norm_definition(x.array(), weight.array(), eps), kernels.sum_factor(scheme)
    )


def _normed(hidden: int) -> tuple[Tiled, Tiled]:
    return rows(2, hidden), Tiled(rows(1, hidden, seed=1).tile[0], (hidden,))


def quantize_rows(kernels: Any, columns: int, scheme: Any) -> Iterator[Sample]:
    x = rows(2, columns)
    yield quantized([x], x.array(), kernels.sum_factor(scheme))


def quantized(
    inputs: list[Tiled], answer: np.ndarray, factor: int, width: int | None = None
) -> Sample:
    """A sample of a kernel that writes rows `answer` as int8 activations, repeated to `width`
    columns.
    """
    values = word_values(words_of(answer, factor)).astype(np.float32)
    shape = (len(answer), (width or answer.shape[1]) // 32, values.shape[-1])
    return Sample(ROUNDED, inputs, [Expected(len(inputs), Tiled(values, shape), words=True)])


def words_of(x: np.ndarray, factor: int) -> np.ndarray:
    """What quantize_rows writes, by its definition, int32 [m, groups, 10]."""
    values, scale = quantize_rows_definition(x.astype(np.float32))
    groups = values.reshape(len(x), -1, 32)
    sums = factor * groups.sum(-1, dtype=np.int32)
    return np.concatenate(
        [groups.view(np.int32), scale.view(np.int32)[..., None], sums[..., None]], -1
    )
