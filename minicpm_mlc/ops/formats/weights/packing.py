"""Rows interleaved by 16, so that one vector load brings the same columns of 16 rows.

Numbers [n, k] become [ceil(n/16), k, 16]: element [b, column, lane] is that of row 16 b + lane.
Quads, for dot products of four int8 pairs, become [ceil(n/16), k/4, 64]: element [b, c, 4 lane + i]
is that of row 16 b + lane and column 4 c + i.
"""

from __future__ import annotations

import numpy as np

from minicpm_mlc.bundle.manifest_schema import WEIGHT_LAYOUTS
from minicpm_mlc.ops.formats.weights import LANES

ROWS16 = WEIGHT_LAYOUTS["f32"]  # the layout for float32 arithmetic
QUADS = WEIGHT_LAYOUTS["int8"]  # and that for int8 dot products
QUAD = 4  # columns that one int8 dot product takes


def blocks_of(rows: int) -> int:
    """Blocks of 16 rows that hold `rows` rows."""
    return -(-rows // LANES)


def interleave(numbers: np.ndarray, padding: int = 0) -> np.ndarray:
    """[n, k] of any dtype -> [ceil(n/16), k, 16]; rows past n hold `padding`."""
    padded = _whole_blocks(numbers, padding)
    blocks = padded.reshape(-1, LANES, padded.shape[1])
    return np.ascontiguousarray(blocks.transpose(0, 2, 1))


def deinterleave(packed: np.ndarray, rows: int) -> np.ndarray:
    """Inverse of `interleave`: [ceil(n/16), k, 16] -> [rows, k]."""
    blocks, columns, _ = packed.shape
    return np.ascontiguousarray(packed.transpose(0, 2, 1).reshape(blocks * LANES, columns)[:rows])


def interleave_quads(numbers: np.ndarray, padding: int = 0) -> np.ndarray:
    """[n, k] of any dtype, k a multiple of 4 -> [ceil(n/16), k/4, 64]; rows past n hold
    `padding`.
    """
    padded = _whole_blocks(numbers, padding)
    quads = padded.reshape(-1, LANES, padded.shape[1] // QUAD, QUAD).swapaxes(1, 2)
    return np.ascontiguousarray(quads.reshape(len(quads), -1, LANES * QUAD))


def deinterleave_quads(packed: np.ndarray, rows: int) -> np.ndarray:
    """Inverse of `interleave_quads`: [ceil(n/16), k/4, 64] -> [rows, k]."""
    blocks, columns, _ = packed.shape
    quads = packed.reshape(blocks, columns, LANES, QUAD).swapaxes(1, 2)
    return np.ascontiguousarray(quads.reshape(blocks * LANES, columns * QUAD)[:rows])


def _whole_blocks(numbers: np.ndarray, padding: int) -> np.ndarray:
    missing = -len(numbers) % LANES
    if not missing:
        return numbers
    return np.pad(numbers, ((0, missing), (0, 0)), constant_values=padding)
