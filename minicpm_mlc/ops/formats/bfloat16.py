"""bfloat16 as its bits, uint16: NumPy and TVM have no numbers of that type.

The GPU's conversions are in ops/gpu/float16_bits.py.
"""

from __future__ import annotations

import numpy as np

from minicpm_mlc.ops.cpu.vector import LANES
from minicpm_mlc.ops.tir import Expr, T


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """uint16 bits of the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bfloat16_numbers(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of uint16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def widened(bits: Expr) -> Expr:
    """The float32x16 of uint16x16 bits."""
    shift = T.broadcast(T.uint32(16), LANES)
    return T.reinterpret(T.shift_left(T.Cast("uint32x16", bits), shift), dtype="float32x16")


def rounded(x: Expr) -> Expr:
    """uint16x16 bits of the bfloat16 nearest to a float32x16, ties to even."""
    bits = T.Bind(T.reinterpret(x, dtype="uint32x16"))
    below_half, one = (T.broadcast(T.uint32(value), LANES) for value in (0x7FFF, 1))
    shift = T.broadcast(T.uint32(16), LANES)
    nearest = bits + below_half + T.bitwise_and(T.shift_right(bits, shift), one)
    return T.Cast("uint16x16", T.shift_right(nearest, shift))
