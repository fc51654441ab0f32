"""Blocks of 4 to 8 bits, and floats: how a block's bytes stand for numbers, and which of a bundle's
schemes hold the same integers and scales.

A number is scale * integer - minimum in float32, computed in llama.cpp's order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.ops.formats.bfloat16 import bfloat16_numbers
from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.level_pairs import level_bytes

GROUP = 32  # columns that share a scale in the schemes that carry a block
SUPER = 256  # numbers of a K block


@dataclass(frozen=True)
class Block(ABC):
    """One type: `values` numbers in `nbytes` bytes. Arrays of blocks are uint8 [n, nbytes]."""

    name: str
    values: int
    nbytes: int
    carriers: ClassVar[tuple[str, ...]] = ()  # schemes that hold it exactly, the smallest first
    group: ClassVar[int] = GROUP  # numbers that share a scale

    @abstractmethod
    def numbers(self, raw: np.ndarray) -> np.ndarray:
        """float32 [n, values]."""

    def carried(self, raw: np.ndarray, scheme: str) -> Parts | None:
        """Values [n, values] and what is beside them, [n] or [n, numbers], as a scheme of
        `carriers` quantises it; None where these blocks hold what it doesn't.
        """
        return None


@dataclass(frozen=True)
class Floats(Block):
    """One number after another."""

    dtype: str

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        stored = np.ascontiguousarray(raw).view(self.dtype)
        return bfloat16_numbers(stored) if self.name == "BF16" else stored.astype(np.float32)


@dataclass(frozen=True)
class Ints32(Block):
    """32 integers of 4 or 5 bits, from 0 or around `zero`, with a scale and perhaps a minimum."""

    bits: int
    has_minimum: bool

    @property
    def carriers(self) -> tuple[str, ...]:
        """5 bits around zero fit into 8; above a minimum, into no scheme."""
        if self.has_minimum:
            return ("w4a",) if self.bits == 4 else ()
        return ("w4", "w4a", "w8") if self.bits == 4 else ("w8",)

    @property
    def zero(self) -> int:
        """The integer of number 0."""
        return 0 if self.has_minimum else 1 << (self.bits - 1)

    def integers(self, raw: np.ndarray) -> np.ndarray:
        """uint8 [n, 32]."""
        values = low_then_high(raw[:, -16:])
        if self.bits == 5:
            high = raw[:, -20:-16]
            values |= np.unpackbits(high, axis=1, bitorder="little") << 4
        return values

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        centred = self.integers(raw).astype(np.float32) - self.zero
        scaled = half(raw, 0) * centred
        return scaled + half(raw, 2) if self.has_minimum else scaled

    def carried(self, raw: np.ndarray, scheme: str) -> Parts | None:
        values, scale = self.integers(raw), stored_half(raw, 0)
        if self.has_minimum:
            return {"weight": values, "scale": scale, "minimum": stored_half(raw, 2)}
        return around_zero(values, self.zero, scale, scheme)


@dataclass(frozen=True)
class Q8(Block):
    """32 signed bytes with a scale."""

    carriers = ("w8",)

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        return half(raw, 0) * signed(raw[:, 2:]).astype(np.float32)

    def carried(self, raw: np.ndarray, scheme: str) -> Parts | None:
        values = signed(raw[:, 2:])
        # w8 ends at -127; llama.cpp's quantiser too
        return None if (values == -128).any() else {"weight": values, "scale": stored_half(raw, 0)}


@dataclass(frozen=True)
class KPairs(Block):
    """256 integers of 4 or 5 bits; each 32 have a scale and a minimum of 6 bits, which two f16
    numbers multiply.
    """

    bits: int

    @property
    def carriers(self) -> tuple[str, ...]:
        """The scheme of the same bits."""
        return (f"w{self.bits}k",)

    def integers(self, raw: np.ndarray) -> np.ndarray:
        """uint8 [n, 8, 32]."""
        values = low_then_high(raw[:, -128:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
        if self.bits == 5:
            shifts = np.arange(8, dtype=np.uint8)[:, None]
            values |= (raw[:, 16:48][:, None] >> shifts & 1) << 4
        return values

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        scales, minimums = (levels.astype(np.float32) for levels in _six_bit_pairs(raw[:, 4:16]))
        scale, minimum = half(raw, 0) * scales, half(raw, 2) * minimums
        values = self.integers(raw).astype(np.float32)
        return (scale[..., None] * values - minimum[..., None]).reshape(-1, SUPER)

    def carried(self, raw: np.ndarray, scheme: str) -> Parts:
        levels = level_bytes(*_six_bit_pairs(raw[:, 4:16]))
        units = {"scale": stored_half(raw, 0), "minimum": -stored_half(raw, 2)}
        return {"weight": self.integers(raw).reshape(-1, SUPER), **units, "levels": levels}


@dataclass(frozen=True)
class Q6K(Block):
    """256 integers of 6 bits; each 16 have a signed scale of 8 bits, which an f16 multiplies."""

    carriers = ("w6",)
    group = 16

    def integers(self, raw: np.ndarray) -> np.ndarray:
        """uint8 [n, 256]: 32 is the number 0."""
        low = low_then_high(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
        shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
        high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
        return (low | high << 4).reshape(-1, SUPER)

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        values = self.integers(raw).reshape(-1, 16, 16).astype(np.float32) - 32
        scale = half(raw, 208) * signed(raw[:, 192:208]).astype(np.float32)
        return (scale[..., None] * values).reshape(-1, SUPER)

    def carried(self, raw: np.ndarray, scheme: str) -> Parts:
        levels = signed(raw[:, 192:208])
        return {"weight": self.integers(raw), "scale": stored_half(raw, 208), "levels": levels}


def around_zero(values: np.ndarray, zero: int, scale: np.ndarray, scheme: str) -> Parts | None:
    """uint8 integers [n, 32] around `zero` with f16 scales [n], in a scheme that holds them; None
    where w4a has no f16 minimum for them.
    """
    if scheme == "w4":
        return {"weight": values, "scale": scale}
    if scheme == "w8":
        return {"weight": (values - np.uint8(zero)).view(np.int8), "scale": scale}
    with np.errstate(over="ignore"):
        minimum = scale * np.float16(-zero)
    parts = {"weight": values, "scale": scale, "minimum": minimum}
    return parts if np.isfinite(minimum).all() else None


def low_then_high(raw: np.ndarray) -> np.ndarray:
    """The low nibbles of bytes [..., n], then the high ones: [..., 2 n]."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def signed(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(np.int8)


def stored_half(raw: np.ndarray, at: int) -> np.ndarray:
    """f16 [n], of two bytes of each block."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2").reshape(-1)


def half(raw: np.ndarray, at: int) -> np.ndarray:
    """The same as float32 [n, 1]."""
    return stored_half(raw, at).astype(np.float32)[:, None]


def _six_bit_pairs(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes a block -> 8 scales and 8 minimums, uint8."""
    first, second, last = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([first & 63, last & 15 | first >> 6 << 4], axis=1)
    minimums = np.concatenate([second & 63, last >> 4 | second >> 6 << 4], axis=1)
    return scales, minimums
