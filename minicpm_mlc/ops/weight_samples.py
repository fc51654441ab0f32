"""Random weights to check kernels with. A bundle keeps few blocks of 16 rows, which a matrix
repeats; the test grid wants whole matrices, as they are quantised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.ops.formats.weights import LANES, SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.formats.weights.packing import blocks_of
from minicpm_mlc.ops.samples import Draw

BLOCKS = 5  # of 16 weight rows that differ
COLUMNS = 37  # stored elements along a weight's columns that differ
MATRICES = ((33, 96, False), (80, 1056, True), (160, 256, False))  # rows, columns, residual


@dataclass(frozen=True)
class SampleWeights:
    """A matrix: its stored tensors as kernels take them, and the rows that they stand for, float64
    [rows, columns]. Rows of the matrix after these are the same again.
    """

    stored: list[Tiled]
    rows: np.ndarray


def sample_weights(draw: Draw, n: int, k: int, scheme: Scheme) -> SampleWeights:
    """A matrix [n, k]."""
    blocks = blocks_of(n) if draw.whole else min(BLOCKS, blocks_of(n))
    tensors = scheme.tensors(n, k)
    if draw.whole:
        packed = scheme.pack(scheme.quantize(draw.normal(n, k).tile))
        stored = [Tiled.whole(packed[tensor.name]) for tensor in tensors]
    else:
        stored = []
        for tensor in tensors:
            _, columns, lanes = tensor.shape
            tile = scheme.random(tensor.name, (blocks, min(COLUMNS, columns), lanes))
            stored.append(Tiled(tile, tensor.shape))
    first = {
        tensor.name: Tiled(tiled.tile, (blocks, *tensor.shape[1:])).array()
        for tensor, tiled in zip(tensors, stored, strict=True)
    }
    parts = scheme.unpack(first, blocks * LANES)
    return SampleWeights(stored, scheme.dequantize(parts, np.float64))


def stored_rows(scheme: Scheme, n: int, k: int, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """The weights [n, k], float64, that stored tensors stand for."""
    names = [tensor.name for tensor in scheme.tensors(n, k)]
    return scheme.dequantize(scheme.unpack(dict(zip(names, arrays, strict=True)), n), np.float64)


def schemes_of_int8() -> list[Scheme]:
    """Those that int8 activations can meet, laid out for them."""
    return [scheme.beside("int8") for scheme in SCHEMES.values() if scheme.takes_int8]


def reads_sums(traits: Any, factor: int) -> bool:
    """Whether a scheme's kernels on such a device read sums that were multiplied by this factor."""
    return any(traits.sum_factor(scheme) == factor for scheme in schemes_of_int8())
