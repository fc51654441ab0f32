"""Weights cast to a float format: no groups, no scales."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme, require_finite, too_large
from minicpm_mlc.ops.formats.weights.values import Values
from minicpm_mlc.ops.tir import Buffer, Expr, T


class FloatValues(Values):
    """Floats of 32 or 16 bits."""

    @abstractmethod
    def widened(self, value: Expr, lanes: int) -> Expr:
        """The float32 of a stored element, or of a vector of them."""

    def pair(
        self, stored: Buffer, block: Expr, g: Expr, j: Expr, lane: Expr, lanes: int, layout: str
    ) -> tuple[Expr, Expr]:
        first, second = (
            self.widened(stored[block, g * GROUP + half + j, lane], lanes) for half in (0, 16)
        )
        return first, second


def halves(word: Expr) -> list[Expr]:
    """The two 16-bit elements of a uint32."""
    return [
        T.Bind(T.bitwise_and(T.shift_right(word, T.uint32(at)), T.uint32(0xFFFF))) for at in (0, 16)
    ]


@dataclass(frozen=True)
class FloatScheme(Scheme):
    """A scheme that only casts."""

    @abstractmethod
    def cast(self, weights: np.ndarray) -> np.ndarray:
        """float32 [n, k] -> the nearest values, infinite where a weight is too large."""

    def quantize(self, weights: np.ndarray, name: str = "weights") -> Parts:
        require_finite(weights, name)
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.cast(weights)
        if np.isinf(self.values.numbers(values)).any():
            raise too_large(weights, self.name, name)
        return {"weight": values}
