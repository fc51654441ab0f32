"""The CPU weight layouts: rows interleaved by 16, so one vector load brings the same columns of 16
output rows.

"rows16", for float32 arithmetic: values are [ceil(n/16), k, 16] with element [b, column, lane] =
q[16 b + lane, column]. 4-bit values are uint8 [ceil(n/16), k/2, 16]: inside each group of 32
columns, byte j holds column j in its low nibble and column 16+j in its high nibble.

"rows16x4", for dot products of four int8 pairs: 8-bit values are [ceil(n/16), k/4, 64] with element
[b, c, 4 lane + i] = q[16 b + lane, 4 c + i]. 4-bit values are uint8 [ceil(n/16), k/8, 64]: the same
element holds columns 8 c + i and, in its high nibble, 8 c + 4 + i.

Scales are [ceil(n/16), k/group, 16] in both.
"""

from __future__ import annotations

import numpy as np

LANES = 16
NIBBLE_GROUP = 32
ZERO_NIBBLE = 8  # 4-bit values are stored as value + 8
QUAD = 4  # columns that one int8 dot product takes
LAYOUTS = ("rows16", "rows16x4")


def blocks_of(rows: int) -> int:
    """Blocks of 16 rows that hold `rows` rows."""
    return -(-rows // LANES)


def packed_shape(
    rows: int, columns: int, bits: int, layout: str = "rows16"
) -> tuple[int, int, int]:
    """Shape of the packed values of a [rows, columns] matrix."""
    together = QUAD if layout == "rows16x4" else 1
    return blocks_of(rows), columns // (2 * together if bits == 4 else together), together * LANES


def packed_scales_shape(rows: int, columns: int, group: int) -> tuple[int, int, int]:
    """Shape of the packed scales of a [rows, columns] matrix with one scale per `group` columns."""
    return blocks_of(rows), columns // group, LANES


def pack(values: np.ndarray, bits: int = 0, layout: str = "rows16") -> np.ndarray:
    """[n, k] values of any dtype -> packed values; bits=4 takes uint8 in 0..15 and k a multiple of
    32.

    Padding rows are zero weights. The layout rows16x4 takes 8-bit and 4-bit values.
    """
    if layout == "rows16x4":
        return _pack_quads(values, bits)
    if bits == 4:
        return _interleave(_join_nibbles(values), padding=ZERO_NIBBLE * 0x11)
    return _interleave(values, padding=0)


def unpack(packed: np.ndarray, rows: int, bits: int = 0, layout: str = "rows16") -> np.ndarray:
    """Inverse of `pack`: packed values -> [rows, k]."""
    if layout == "rows16x4":
        return _unpack_quads(packed, rows, bits)
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


def _pack_quads(values: np.ndarray, bits: int) -> np.ndarray:
    rows, columns = values.shape
    blocks = blocks_of(rows)
    padding = ((0, blocks * LANES - rows), (0, 0))
    values = np.pad(values, padding, constant_values=ZERO_NIBBLE if bits == 4 else 0)
    quads = (
        values.reshape(blocks, LANES, columns // QUAD, QUAD)
        .swapaxes(1, 2)
        .reshape(blocks, -1, LANES * QUAD)
    )
    return quads[:, 0::2] | quads[:, 1::2] << 4 if bits == 4 else np.ascontiguousarray(quads)


def _unpack_quads(packed: np.ndarray, rows: int, bits: int) -> np.ndarray:
    blocks = len(packed)
    if bits == 4:
        packed = np.stack((packed & 15, packed >> 4), axis=2)
    quads = packed.reshape(blocks, -1, LANES, QUAD).swapaxes(1, 2)
    return np.ascontiguousarray(quads.reshape(blocks * LANES, -1)[:rows])
