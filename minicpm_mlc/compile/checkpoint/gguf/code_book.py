"""Blocks whose 4 bits name one of 16 numbers, which lie closer together around zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.compile.checkpoint.gguf.blocks import (
    SUPER,
    Block,
    half,
    low_then_high,
    stored_half,
)
from minicpm_mlc.ops.formats.weights.base import Parts

CODES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


@dataclass(frozen=True)
class IQ4NL(Block):
    """32 codes with a scale."""

    carriers = ("w8",)

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        return half(raw, 0) * self._codes(raw).astype(np.float32)

    def carried(self, raw: np.ndarray, scheme: str) -> Parts | None:
        return {"weight": self._codes(raw), "scale": stored_half(raw, 0)}

    def _codes(self, raw: np.ndarray) -> np.ndarray:
        return CODES[low_then_high(raw[:, 2:])]


@dataclass(frozen=True)
class IQ4XS(Block):
    """256 codes; each 32 have a scale of 6 bits around 32, which an f16 multiplies."""

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        scale = half(raw, 0) * (self._scales(raw).astype(np.float32) - 32)
        codes = CODES[low_then_high(raw[:, 8:].reshape(-1, 8, 16))].astype(np.float32)
        return (scale[..., None] * codes).reshape(-1, SUPER)

    def _scales(self, raw: np.ndarray) -> np.ndarray:
        """uint8 [n, 8]: low nibbles of 4 bytes, two by two, and the high bits in 16 bits before."""
        low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
        shifts = np.array([0, 2, 4, 6], np.uint8)
        high = (raw[:, 2:4, None] >> shifts & 3).reshape(-1, 8)
        return low | high << 4
