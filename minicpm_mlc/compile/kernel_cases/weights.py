"""Samples of the operators that read weights. Few blocks of 16 weight rows are made; a matrix
repeats them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Expected, Tiled
from minicpm_mlc.compile.kernel_cases.rows import quantized, words_of
from minicpm_mlc.compile.kernel_cases.sample import SUMS, Sample, ids, new, normal, rows
from minicpm_mlc.ops.cpu.embed import embed_definition
from minicpm_mlc.ops.cpu.linear import linear_definition
from minicpm_mlc.ops.cpu.linear_int8 import linear_int8_definition
from minicpm_mlc.ops.formats.kv import bfloat16_bits
from minicpm_mlc.ops.formats.packing import unpack, unpack_scales
from minicpm_mlc.ops.formats.weights import GROUP, LANES, WeightFormat
from minicpm_mlc.ops.swiglu import swiglu_definition

BLOCKS = 5  # of 16 weight rows that differ
COLUMNS = 37  # stored elements along a weight's columns that differ
ROWS = (1, 3, 19)  # activation rows: one, few, more than a tile


class Weights:
    """Weight and scales [n, k] as kernels take them, and the first BLOCKS blocks of rows that they
    stand for, float64.
    """

    def __init__(self, n: int, k: int, fmt: WeightFormat) -> None:
        shape = fmt.weight_shape(n, k)
        tile = _stored((min(BLOCKS, shape[0]), min(COLUMNS, shape[1]), shape[2]), fmt)
        self.weight = self.scale = Tiled(tile, shape)
        first = Tiled(tile, (len(tile), *shape[1:])).array()
        bits = 4 if fmt.name == "w4" else 0
        values = unpack(first, len(first) * LANES, bits, fmt.layout)
        if fmt.name == "bf16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        self.rows = values.astype(np.float64) - (8 if fmt.name == "w4" else 0)
        if fmt.group:
            shape = fmt.scale_shape(n, k)
            scales = np.random.default_rng(1).uniform(
                0.004, 0.02, (len(tile), min(COLUMNS, shape[1]), LANES)
            )
            self.scale = Tiled(scales.astype(np.float16), shape)
            repeated = Tiled(self.scale.tile, (len(tile), *shape[1:])).array()
            self.rows *= np.repeat(unpack_scales(repeated, len(self.rows)), fmt.group, axis=1)


def _stored(shape: tuple[int, ...], fmt: WeightFormat) -> np.ndarray:
    if fmt.group:
        low, high = (0, 256) if fmt.name == "w4" else (-127, 128)
        return np.random.default_rng(0).integers(low, high, shape).astype(fmt.dtype)
    values = 0.1 * normal(*shape)
    return bfloat16_bits(values) if fmt.name == "bf16" else values.astype(fmt.dtype)


def embed(
    _: Any, vocab: int, hidden: int, fmt: WeightFormat, *, scale: float = 1.0
) -> Iterator[Sample]:
    table, tokens = Weights(vocab, hidden, fmt), ids(0, vocab - 1, vocab // 2)
    answer = embed_definition(tokens.tile % len(table.rows), table.rows, scale)
    yield new([tokens, table.weight, table.scale], answer)


def linear(
    _: Any, n: int, k: int, fmt: WeightFormat, *, residual: bool = False, scale: float = 1.0
) -> Iterator[Sample]:
    weights = Weights(n, k, fmt)
    for m in ROWS:
        x = rows(m, k)
        beside = _residual(m, weights) if residual else None
        answer = linear_definition(x.array(), weights.rows, beside, scale)
        yield _linear(x, weights, beside, answer, n)


def linear_int8(
    kernels: Any, n: int, k: int, fmt: WeightFormat, *, residual: bool = False, scale: float = 1.0
) -> Iterator[Sample]:
    weights = Weights(n, k, fmt)
    for m in ROWS:
        values, x = _words(m, k, kernels.zero(fmt))
        beside = _residual(m, weights) if residual else None
        answer = linear_int8_definition(values, weights.rows, beside, scale)
        yield _linear(x, weights, beside, answer, n)


def linear_swiglu_int8(
    kernels: Any, intermediate: int, k: int, fmt: WeightFormat
) -> Iterator[Sample]:
    weights, zero = Weights(2 * intermediate, k, fmt), kernels.zero(fmt)
    for m in ROWS:
        values, x = _words(m, k, zero)
        products = linear_int8_definition(values, weights.rows)
        gate_up = Tiled(products.astype(np.float32), (m, 2 * intermediate)).array()
        answer = swiglu_definition(gate_up)[
            :, : BLOCKS * GROUP
        ]  # two blocks of rows to a group: then they repeat
        yield quantized([x, weights.weight, weights.scale], answer, zero, intermediate)


def _words(m: int, k: int, zero: int) -> tuple[np.ndarray, Tiled]:
    """Activations float32 [m, k], and as int8 kernels take them."""
    tile = normal(m, min(GROUP * 7, k))
    return Tiled(tile, (m, k)).array(), Tiled(words_of(tile, zero), (m, k // GROUP, 10))


def _residual(m: int, weights: Weights) -> np.ndarray:
    return normal(m, len(weights.rows), seed=2)


def _linear(
    x: Tiled, weights: Weights, residual: np.ndarray | None, answer: np.ndarray, n: int
) -> Sample:
    shape = (len(answer), -(-n // LANES) * LANES)
    inputs = [
        x,
        weights.weight,
        weights.scale,
        *([] if residual is None else [Tiled(residual, shape)]),
    ]
    return Sample(SUMS, inputs, [Expected(len(inputs), Tiled(answer.astype(np.float32), shape))])
