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
from minicpm_mlc.ops.formats.weights import GROUP, LANES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.formats.weights.packing import blocks_of
from minicpm_mlc.ops.swiglu import swiglu_definition

BLOCKS = 5  # of 16 weight rows that differ
COLUMNS = 37  # stored elements along a weight's columns that differ
ROWS = (1, 3, 19)  # activation rows: one, few, more than a tile


class Weights:
    """A matrix [n, k]: its stored tensors as kernels take them, and the first BLOCKS blocks of the
    rows that they stand for, float64.
    """

    def __init__(self, n: int, k: int, scheme: Scheme) -> None:
        blocks = min(BLOCKS, blocks_of(n))
        self.stored, first = [], {}
        for tensor in scheme.tensors(n, k):
            _, columns, lanes = tensor.shape
            tile = scheme.random(tensor.name, (blocks, min(COLUMNS, columns), lanes))
            self.stored.append(Tiled(tile, tensor.shape))
            first[tensor.name] = Tiled(tile, (blocks, columns, lanes)).array()
        self.rows = scheme.dequantize(scheme.unpack(first, blocks * LANES), np.float64)


def embed(
    _: Any, vocab: int, hidden: int, scheme: Scheme, *, scale: float = 1.0
) -> Iterator[Sample]:
    table, tokens = Weights(vocab, hidden, scheme), ids(0, vocab - 1, vocab // 2)
    answer = embed_definition(tokens.tile % len(table.rows), table.rows, scale)
    yield new([tokens, *table.stored], answer)


def linear(
    _: Any, n: int, k: int, scheme: Scheme, *, residual: bool = False, scale: float = 1.0
) -> Iterator[Sample]:
    weights = Weights(n, k, scheme)
    for m in ROWS:
        x = rows(m, k)
        beside = _residual(m, weights) if residual else None
        answer = linear_definition(x.array(), weights.rows, beside, scale)
        yield _linear(x, weights, beside, answer, n)


def linear_int8(
    kernels: Any, n: int, k: int, scheme: Scheme, *, residual: bool = False, scale: float = 1.0
) -> Iterator[Sample]:
    weights = Weights(n, k, scheme)
    for m in ROWS:
        values, x = _words(m, k, kernels.sum_factor(scheme))
        beside = _residual(m, weights) if residual else None
        answer = linear_int8_definition(values, weights.rows, beside, scale)
        yield _linear(x, weights, beside, answer, n)


def linear_swiglu_int8(kernels: Any, intermediate: int, k: int, scheme: Scheme) -> Iterator[Sample]:
    weights, factor = Weights(2 * intermediate, k, scheme), kernels.sum_factor(scheme)
    for m in ROWS:
        values, x = _words(m, k, factor)
        products = linear_int8_definition(values, weights.rows)
        gate_up = Tiled(products.astype(np.float32), (m, 2 * intermediate)).array()
        answer = swiglu_definition(gate_up)[
            :, : BLOCKS * GROUP
        ]  # two blocks of rows to a group: then they repeat
        yield quantized([x, *weights.stored], answer, factor, intermediate)


def _words(m: int, k: int, factor: int) -> tuple[np.ndarray, Tiled]:
    """Activations float32 [m, k], and as int8 kernels take them."""
    tile = normal(m, min(GROUP * 7, k))
    return Tiled(tile, (m, k)).array(), Tiled(words_of(tile, factor), (m, k // GROUP, 10))


def _residual(m: int, weights: Weights) -> np.ndarray:
    return normal(m, len(weights.rows), seed=2)


def _linear(
    x: Tiled, weights: Weights, residual: np.ndarray | None, answer: np.ndarray, n: int
) -> Sample:
    shape = (len(answer), -(-n // LANES) * LANES)
    inputs = [
        x,
        *weights.stored,
        *([] if residual is None else [Tiled(residual, shape)]),
    ]
    return Sample(SUMS, inputs, [Expected(len(inputs), Tiled(answer.astype(np.float32), shape))])
