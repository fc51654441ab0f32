"""bfloat16 as its bits, uint16: NumPy and TVM have no numbers of that type."""

from __future__ import annotations

import numpy as np


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """uint16 bits of the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bfloat16_numbers(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of uint16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
