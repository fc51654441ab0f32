"""Integers in groups of columns of one row that share an f16 scale."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme, require_finite, too_large


@dataclass(frozen=True)
class GroupScheme(Scheme):
    """A scheme that rounds each group of columns on its own."""

    group: int = GROUP

    @abstractmethod
    def quantize_groups(self, groups: np.ndarray) -> Parts:
        """float32 [group, groups] -> values of that shape, and f16 [groups] of each group tensor.

        Groups are columns: NumPy is many times faster along the long axis than within a group.
        """

    def quantize(self, weights: np.ndarray, name: str = "weights") -> Parts:
        require_finite(weights, name)
        rows, columns = weights.shape
        if columns % self.group:
            raise CompileError(
                f"tensor {name} has {columns} columns, not a multiple of scheme {self.name}'s "
                f"group of {self.group}: use --quant f16"
            )
        groups = np.ascontiguousarray(weights.reshape(-1, self.group).T)
        with np.errstate(over="ignore", invalid="ignore"):
            parts = self.quantize_groups(groups)
        values = parts.pop("weight")
        if not all(np.isfinite(part).all() for part in parts.values()):
            raise too_large(weights, self.name, name)
        values = np.ascontiguousarray(values.T).reshape(weights.shape)
        return {"weight": values} | {key: part.reshape(rows, -1) for key, part in parts.items()}


def steps(groups: np.ndarray, scale: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """round(groups / scale) as float32 within the range; zeros where the scale is zero."""
    divisor = scale.astype(np.float32)
    rounded = groups * np.divide(1, divisor, out=np.zeros_like(divisor), where=divisor != 0)
    np.rint(rounded, out=rounded)
    return np.clip(rounded, lowest, highest, out=rounded)
