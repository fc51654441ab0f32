"""Blocks of 1.7 to 3 bits a number: 256 of them share f16 scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.compile.checkpoint.gguf.blocks import (
    GROUP,
    SUPER,
    Block,
    around_zero,
    half,
    stored_half,
)
from minicpm_mlc.ops.formats.weights.base import Parts

POWERS = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
TERNARY_ZERO = 8  # w4's integer of weight 0


@dataclass(frozen=True)
class Q2K(Block):
    """256 integers of 2 bits; each 16 have a scale and a minimum of 4 bits, which two f16 numbers
    multiply.
    """

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        pairs = raw[:, :16]
        scale = half(raw, 80) * (pairs & 15).astype(np.float32)
        minimum = half(raw, 82) * (pairs >> 4).astype(np.float32)
        values = quarters(raw[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
        return (scale[..., None] * values - minimum[..., None]).reshape(-1, SUPER)


@dataclass(frozen=True)
class Q3K(Block):
    """256 integers of 3 bits around 4; each 16 have a scale of 6 bits around 32, which an f16
    multiplies.
    """

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        shifts = np.arange(8, dtype=np.uint8)[:, None]
        high = raw[:, None, :32] >> shifts & 1
        values = quarters(raw[:, 32:96]).reshape(-1, 8, 32) | high << 2
        centred = values.reshape(-1, 16, 16).astype(np.float32) - 4
        scale = half(raw, 108) * (_six_bits(raw[:, 96:108]).astype(np.float32) - 32)
        return (scale[..., None] * centred).reshape(-1, SUPER)


@dataclass(frozen=True)
class Ternary(Block):
    """256 of -1, 0 and 1 with a scale, in 2 bits each or five to a byte."""

    carriers = ("w4", "w4a", "w8")

    def digits(self, raw: np.ndarray) -> np.ndarray:
        """uint8 [n, 256] of 0, 1 and 2."""
        return quarters(raw[:, :64]) if self.name == "TQ2_0" else _fives(raw[:, :52])

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        return half(raw, self.nbytes - 2) * (self.digits(raw).astype(np.float32) - 1)

    def carried(self, raw: np.ndarray, scheme: str) -> Parts | None:
        values = (self.digits(raw) + np.uint8(TERNARY_ZERO - 1)).reshape(-1, GROUP)
        scale = stored_half(raw, self.nbytes - 2).repeat(SUPER // GROUP)
        return around_zero(values, TERNARY_ZERO, scale, scheme)


def quarters(raw: np.ndarray) -> np.ndarray:
    """Bytes [n, 64] -> numbers of 2 bits [n, 256]: 32 bytes hold 128, number 32 i + j in bits 2 i
    of byte j.
    """
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (raw.reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, SUPER)


def _six_bits(raw: np.ndarray) -> np.ndarray:
    """12 bytes a block -> 16 numbers: low nibbles of the first 8 bytes, their high ones, and two
    more bits of each in the last 4.
    """
    low = np.concatenate([raw[:, :8] & 15, raw[:, :8] >> 4], axis=1)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (raw[:, None, 8:] >> shifts & 3).reshape(-1, 16)
    return low | high << 4


def _fives(raw: np.ndarray) -> np.ndarray:
    """Bytes [n, 52] -> ternary digits [n, 256]. Byte b stands for the fraction b / 256 in base 3:
    five digits in each of 32 and of 16 bytes, four in each of the last 4.
    """
    parts = [(raw[:, :32], 5), (raw[:, 32:48], 5), (raw[:, 48:], 4)]
    found = [_digits(part[:, None], count).reshape(len(raw), -1) for part, count in parts]
    return np.concatenate(found, axis=1)


def _digits(raw: np.ndarray, count: int) -> np.ndarray:
    shifted = raw * POWERS[:count]  # uint8: what is above the point falls off
    return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8)
