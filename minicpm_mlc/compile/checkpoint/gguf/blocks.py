"""The tensor types of GGUF: how a block's bytes stand for numbers, and which of a bundle's schemes
hold the same integers and scales.

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
        values = _low_then_high(raw[:, -16:])
        if self.bits == 5:
            high = raw[:, -20:-16]
            values |= np.unpackbits(high, axis=1, bitorder="little") << 4
        return values

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        centred = self.integers(raw).astype(np.float32) - self.zero
        scaled = _half(raw, 0) * centred
        return scaled + _half(raw, 2) if self.has_minimum else scaled

    def carried(self, raw: np.ndarray, scheme: str) -> Parts | None:
        values, scale = self.integers(raw), _stored_half(raw, 0)
        if scheme == "w4":
            return {"weight": values, "scale": scale}
        if scheme == "w8":
            return {"weight": (values - np.uint8(self.zero)).view(np.int8), "scale": scale}
        with np.errstate(over="ignore"):
            minimum = _stored_half(raw, 2) if self.has_minimum else scale * np.float16(-self.zero)
        parts = {"weight": values, "scale": scale, "minimum": minimum}
        return parts if np.isfinite(minimum).all() else None


@dataclass(frozen=True)
class Q8(Block):
    """32 signed bytes with a scale."""

    carriers = ("w8",)

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        return _half(raw, 0) * _signed(raw[:, 2:]).astype(np.float32)

    def carried(self, raw: np.ndarray, scheme: str) -> Parts | None:
        values = _signed(raw[:, 2:])
        # w8 ends at -127; llama.cpp's quantiser too
        return None if (values == -128).any() else {"weight": values, "scale": _stored_half(raw, 0)}


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
        values = _low_then_high(raw[:, -128:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
        if self.bits == 5:
            shifts = np.arange(8, dtype=np.uint8)[:, None]
            values |= (raw[:, 16:48][:, None] >> shifts & 1) << 4
        return values

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        scales, minimums = (levels.astype(np.float32) for levels in _six_bit_pairs(raw[:, 4:16]))
        scale, minimum = _half(raw, 0) * scales, _half(raw, 2) * minimums
        values = self.integers(raw).astype(np.float32)
        return (scale[..., None] * values - minimum[..., None]).reshape(-1, SUPER)

    def carried(self, raw: np.ndarray, scheme: str) -> Parts:
        levels = level_bytes(*_six_bit_pairs(raw[:, 4:16]))
        units = {"scale": _stored_half(raw, 0), "minimum": -_stored_half(raw, 2)}
        return {"weight": self.integers(raw).reshape(-1, SUPER), **units, "levels": levels}


@dataclass(frozen=True)
class Q6K(Block):
    """256 integers of 6 bits; each 16 have a signed scale of 8 bits, which an f16 multiplies."""

    carriers = ("w6",)
    group = 16

    def integers(self, raw: np.ndarray) -> np.ndarray:
        """uint8 [n, 256]: 32 is the number 0."""
        low = _low_then_high(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
        shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
        high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
        return (low | high << 4).reshape(-1, SUPER)

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        values = self.integers(raw).reshape(-1, 16, 16).astype(np.float32) - 32
        scale = _half(raw, 208) * _signed(raw[:, 192:208]).astype(np.float32)
        return (scale[..., None] * values).reshape(-1, SUPER)

    def carried(self, raw: np.ndarray, scheme: str) -> Parts:
        levels = _signed(raw[:, 192:208])
        return {"weight": self.integers(raw), "scale": _stored_half(raw, 208), "levels": levels}


def _low_then_high(raw: np.ndarray) -> np.ndarray:
    """The low nibbles of bytes [..., n], then the high ones: [..., 2 n]."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _signed(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(np.int8)


def _stored_half(raw: np.ndarray, at: int) -> np.ndarray:
    """f16 [n], of two bytes of each block."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2").reshape(-1)


def _half(raw: np.ndarray, at: int) -> np.ndarray:
    """The same as float32 [n, 1]."""
    return _stored_half(raw, at).astype(np.float32)[:, None]


def _six_bit_pairs(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes a block -> 8 scales and 8 minimums, uint8."""
    first, second, last = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([first & 63, last & 15 | first >> 6 << 4], axis=1)
    minimums = np.concatenate([second & 63, last >> 4 | second >> 6 << 4], axis=1)
    return scales, minimums


BLOCKS: dict[int, Block] = {
    0: Floats("F32", 1, 4, "<f4"),
    1: Floats("F16", 1, 2, "<f2"),
    30: Floats("BF16", 1, 2, "<u2"),
    2: Ints32("Q4_0", 32, 18, bits=4, has_minimum=False),
    3: Ints32("Q4_1", 32, 20, bits=4, has_minimum=True),
    6: Ints32("Q5_0", 32, 22, bits=5, has_minimum=False),
    7: Ints32("Q5_1", 32, 24, bits=5, has_minimum=True),
    8: Q8("Q8_0", 32, 34),
    12: KPairs("Q4_K", SUPER, 144, bits=4),
    13: KPairs("Q5_K", SUPER, 176, bits=5),
    14: Q6K("Q6_K", SUPER, 210),
}
REFUSED = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
    42: "Q2_0",
}
