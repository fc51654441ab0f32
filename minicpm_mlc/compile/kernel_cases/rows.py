"""Samples of the operators that work on rows of activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Expected, Tiled, word_values
from minicpm_mlc.compile.kernel_cases.sample import ELEMENTWISE, Sample, ids, new, normal, rows
from minicpm_mlc.ops.cpu.concat import concat_definition
from minicpm_mlc.ops.cpu.gather import gather_rows_definition
from minicpm_mlc.ops.cpu.norm import rms_norm_definition
from minicpm_mlc.ops.cpu.quantize_rows import quantize_rows_definition
from minicpm_mlc.ops.cpu.repeat_row import repeat_row_definition
from minicpm_mlc.ops.cpu.rope import rope_angles_definition
from minicpm_mlc.ops.cpu.swiglu import swiglu_definition
from minicpm_mlc.ops.cpu.top_k import top_k_definition

LOGITS = 4099  # that differ; a larger vocabulary's are the same again: ties
ROUNDED = 1e-5  # a value between two int8 numbers may go either way


def gather_rows(_: Any, hidden: int) -> Iterator[Sample]:
    x, picked = rows(4, hidden), ids(3, 0, 0)
    yield new([x, picked], gather_rows_definition(x.array(), picked.array()))


def concat(_: Any, width: int, parts: int) -> Iterator[Sample]:
    x = [rows(3, width, seed) for seed in range(parts)]
    yield new(x, concat_definition(*(part.array() for part in x)))


def repeat_row(_: Any, width: int) -> Iterator[Sample]:
    row = Tiled(rows(1, width).tile[0], (width,))
    yield new([row], repeat_row_definition(row.array(), 3))


def rope_angles(_: Any, head_dim: int, attention_scale: float = 1.0) -> Iterator[Sample]:
    positions, frequencies = (
        ids(0, 1, 77, 4095),
        Tiled.whole(1e4 ** -np.linspace(0, 1, head_dim // 2, dtype=np.float32)),
    )
    yield new(
        [positions, frequencies],
        rope_angles_definition(positions.tile, frequencies.tile, attention_scale),
    )


def rms_norm(_: Any, hidden: int, eps: float, scale: float = 1.0) -> Iterator[Sample]:
    x, weight = _normed(hidden)
    yield new([x, weight], rms_norm_definition(x.array(), weight.array(), eps, scale))


def rms_norm_int8(kernels: Any, hidden: int, eps: float, scheme: Any) -> Iterator[Sample]:
    x, weight = _normed(hidden)
    yield quantized(
        [x, weight], rms_norm_definition(x.array(), weight.array(), eps), kernels.sum_factor(scheme)
    )


def _normed(hidden: int) -> tuple[Tiled, Tiled]:
    return rows(2, hidden), Tiled(rows(1, hidden, seed=1).tile[0], (hidden,))


def swiglu(_: Any, intermediate: int) -> Iterator[Sample]:
    gate_up = rows(2, 2 * intermediate)
    yield new([gate_up], swiglu_definition(gate_up.array()))


def top_k(_: Any, vocab: int, k: int) -> Iterator[Sample]:
    logits = Tiled(3 * normal(2, min(vocab, LOGITS)), (2, -(-vocab // 16) * 16))
    tokens, values = top_k_definition(logits.array()[:, :vocab], k)
    expected = [
        Expected(1, Tiled.whole(tokens)),
        Expected(2, Tiled.whole(values.astype(np.float32))),
    ]
    yield Sample(ELEMENTWISE, [logits], expected)


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
