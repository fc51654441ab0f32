"""Integers in groups of columns of one row that share an f16 scale, and perhaps an f16 minimum."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme, require_finite, too_large


@dataclass(frozen=True)
class GroupScheme(Scheme):
    """A scheme that rounds each group of columns on its own.

    Groups are columns, float32 [group, groups]: NumPy is many times faster along the long axis than
    within a group. What is `fitted` to them are their group tensors, f16 [groups].
    """

    group: int = GROUP

    @abstractmethod
    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        """The group tensors of least squared error. `importance`: the weights of the squares,
        float32 [group, groups] or [group, 1]; None: all 1.
        """

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest number of a value."""
        values = self.values
        lowest = -values.zero if values.unsigned else -values.largest
        return lowest, values.largest - values.zero

    def nearest(self, groups: np.ndarray, fitted: Parts) -> np.ndarray:
        """The numbers, as float32, whose weights are nearest to these."""
        from_minimum = groups - fitted["minimum"] if self.has_minimum else groups
        return steps(from_minimum, fitted["scale"], *self.limits)

    def restored(self, numbers: np.ndarray, fitted: Parts) -> np.ndarray:
        """The weights of numbers, float32."""
        weights = numbers * fitted["scale"].astype(np.float32)
        return weights + fitted["minimum"] if self.has_minimum else weights

    def refit(
        self, numbers: np.ndarray, fitted: Parts, slope: np.ndarray, moments: np.ndarray
    ) -> Parts:
        """The group tensors that are best for numbers [group, groups] under the loss e M e^T.

        `moments` is M [group, group] of these columns, and `slope` [group, groups] half the loss's
        gradient in the errors e, the columns outside of the group included.
        """
        along = (numbers * slope).sum(0)
        with_numbers = moments @ numbers
        size = (numbers * with_numbers).sum(0)
        if not self.has_minimum:
            return {"scale": halves(fitted["scale"] + divided(along, size))}
        shift, ones = slope.sum(0), float(moments.sum())
        shared = with_numbers.sum(0)
        room = size * ones - shared**2
        room[room < 1e-6 * size * ones] = 0  # numbers that are all one
        scale = fitted["scale"] + divided(along * ones - shift * shared, room)
        minimum = fitted["minimum"] + divided(shift * size - along * shared, room)
        return {"scale": halves(scale), "minimum": halves(minimum)}

    def stored(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers as values."""
        return (numbers + self.values.zero).astype(self.values.dtype)

    def quantize(
        self, weights: np.ndarray, name: str = "weights", importance: np.ndarray | None = None
    ) -> Parts:
        """`importance`: the weight of a column's squared error, float32 [k]; None: all 1."""
        require_finite(weights, name)
        rows, columns = weights.shape
        self.require_whole_groups(columns, name)
        groups = np.ascontiguousarray(weights.reshape(-1, self.group).T)
        if importance is not None:
            importance = np.tile(importance.reshape(-1, self.group).T, rows)
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = self.fit(groups, importance)
            values = self.stored(self.nearest(groups, fitted))
        if not all(np.isfinite(part).all() for part in fitted.values()):
            raise too_large(weights, self.name, name)
        values = np.ascontiguousarray(values.T).reshape(weights.shape)
        others = {t.name: fitted[t.name].reshape(rows, -1) for t in self.group_tensors}
        return {"weight": values} | others

    def require_whole_groups(self, columns: int, name: str) -> None:
        """Raises CompileError for a tensor whose columns are no multiple of the group."""
        if columns % self.group:
            raise CompileError(
                f"tensor {name} has {columns} columns, not a multiple of scheme {self.name}'s "
                f"group of {self.group}: use --quant f16"
            )


def steps(groups: np.ndarray, scale: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """round(groups / scale) as float32 within the range; zeros where the scale is zero."""
    divisor = scale.astype(np.float32)
    rounded = groups * np.divide(1, divisor, out=np.zeros_like(divisor), where=divisor != 0)
    np.rint(rounded, out=rounded)
    return np.clip(rounded, lowest, highest, out=rounded)


def divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where it would be infinite."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def halves(numbers: np.ndarray) -> np.ndarray:
    """As f16."""
    return numbers.astype(np.float16)
