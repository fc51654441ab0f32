"""The CPU weight layout: rows interleaved by 16, so one vector load brings the same column of 16 output rows.

Values are [ceil(n/16), k, 16] with element [b, column, lane] = q[16 b + lane, column].
4-bit values are uint8 [ceil(n/16), k/2, 16]: inside each group of 32 columns, byte j holds column j in its low nibble
and column 16+j in its high nibble. Scales are [ceil(n/16), k/group, 16].
"""

from __future__ import annotations

import numpy as np

LANES = 16
NIBBLE_GROUP = 32
ZERO_NIBBLE = 8  # 4-bit values are stored as value + 8


def blocks_of(rows: int) -> int:
    """Blocks of 16 rows that hold `rows` rows."""
    return -(-rows // LANES)


def packed_shape(rows: int, columns: int, bits: int) -> tuple[int, int, int]:
    """Shape of the packed values of a [rows, columns] matrix."""
    return blocks_of(rows), columns // 2 if bits == 4 else columns, LANES


def packed_scales_shape(rows: int, columns: int, group: int) -> tuple[int, int, int]:
    """Shape of the packed scales of a [rows, columns] matrix with one scale per `group` columns."""
    return blocks_of(rows), columns // group, LANES


def pack(values: np.ndarray, bits: int = 0) -> np.ndarray:
    """[n, k] values of any dtype -> packed values; bits=4 takes uint8 in 0..15 and k a multiple of 32.

    Padding rows are zero weights.
    """
    if bits == 4:
        return _interleave(_join_nibbles(values), padding=ZERO_NIBBLE * 0x11)
    return _interleave(values, padding=0)


def unpack(packed: np.ndarray, rows: int, bits: int = 0) -> np.ndarray:
    """Inverse of `pack`: packed values -> [rows, k]."""
    values = _deinterleave(packed, rows)
    return _split_nibbles(values) if bits == 4 else values


def pack_scales(scale: np.ndarray) -> np.ndarray:
    """[n, k/group] -> [ceil(n/16), k/group, 16]."""
    return _interleave(scale, padding=0)


def unpack_scales(packed: np.ndarray, rows: int) -> np.ndarray:
    """Inverse of `pack_scales`."""
    return _deinterleave(packed, rows)


def _interleave(values: np.ndarray, padding: int) -> np.ndarray:
    rows, columns = values.shape
    blocks = blocks_of(rows)
    if rows % LANES:
        values = np.pad(values, ((0, blocks * LANES - rows), (0, 0)), constant_values=padding)
    return np.ascontiguousarray(values.reshape(blocks, LANES, columns).transpose(0, 2, 1))


def _deinterleave(packed: np.ndarray, rows: int) -> np.ndarray:
    blocks, columns, _ = packed.shape
    return np.ascontiguousarray(packed.transpose(0, 2, 1).reshape(blocks * LANES, columns)[:rows])


def _join_nibbles(values: np.ndarray) -> np.ndarray:
    rows, columns = values.shape
    halves = values.reshape(rows, columns // NIBBLE_GROUP, 2, NIBBLE_GROUP // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(rows, columns // 2)


def _split_nibbles(joined: np.ndarray) -> np.ndarray:
    rows, half = joined.shape
    groups = joined.reshape(rows, half * 2 // NIBBLE_GROUP, 1, NIBBLE_GROUP // 2)
    return np.concatenate((groups & 15, groups >> 4), axis=2).reshape(rows, half * 2)
