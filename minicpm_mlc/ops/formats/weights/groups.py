"""Integers in groups of columns of one row that share a scale, and perhaps a minimum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme, require_finite, too_large
from minicpm_mlc.ops.formats.weights.lines import LineLoss, halves, steps


@dataclass(frozen=True)
class GroupScheme(Scheme):
    """A scheme that rounds each group of columns on its own, or a few `together`.

    Groups are columns, float32 [group, groups]: NumPy is many times faster along the long axis than
    within a group. What is `fitted` to them says their scales and minimums, [groups] each; here it
    is the group tensors, f16.
    """

    together: ClassVar[int] = 1  # neighbouring groups of a row that are fitted as one block
    group: int = GROUP

    @abstractmethod
    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        """What has the least squared error, for whole blocks of groups. `importance`: the weights
        of the squares, float32 [group, groups] or [group, 1]; None: all 1.
        """

    def kept(self, loss: LineLoss, fitted: Parts) -> Parts:
        """What can be stored of the lines that cost least, in place of what is `fitted`."""
        if not self.has_minimum:
            return {"scale": halves(loss.scale_for(0.0))}
        scale = halves(loss.scale(fitted["scale"]))
        return {"scale": scale, "minimum": halves(loss.minimum_for(scale.astype(np.float32)))}

    def fitted_lines(self, fitted: Parts) -> tuple[np.ndarray, np.ndarray | None]:
        """Scales and minimums, float32 [groups] each."""
        return self.lines(fitted)

    def in_rows(self, fitted: Parts, rows: int, columns: int) -> Parts:
        """The group tensors of so many rows and columns; groups are those of the first row, then of
        the second, and so on.
        """
        return {t.name: fitted[t.name].reshape(rows, -1) for t in self.group_tensors}

    def fit_columns(self, weights: np.ndarray, importance: np.ndarray) -> list[Parts]:
        """What is fitted to each group of float32 [k, rows], [rows] each. `importance`: [k]."""
        block = self.group * self.together
        fitted = []
        for start in range(0, len(weights), block):
            part, own = weights[start : start + block], importance[start : start + block]
            whole = self.fit(*self._grouped(part.T, own))
            fitted += self._members(whole, part.shape[1])[: len(part) // self.group]
        return fitted

    def joined(self, fitted: Sequence[Parts]) -> Parts:
        """The group tensors of rows, of what is fitted to each of their groups, [rows] each."""
        return {
            t.name: np.stack([one[t.name] for one in fitted], axis=1) for t in self.group_tensors
        }

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest number of a value."""
        values = self.values
        lowest = -values.zero if values.unsigned else -values.largest
        return lowest, values.largest - values.zero

    def nearest(self, groups: np.ndarray, fitted: Parts) -> np.ndarray:
        """The numbers, as float32, whose weights are nearest to these."""
        scale, minimum = self.fitted_lines(fitted)
        return steps(groups if minimum is None else groups - minimum, scale, *self.limits)

    def restored(self, numbers: np.ndarray, fitted: Parts) -> np.ndarray:
        """The weights of numbers, float32."""
        scale, minimum = self.fitted_lines(fitted)
        return numbers * scale if minimum is None else numbers * scale + minimum

    def refit(
        self, numbers: np.ndarray, fitted: Parts, slope: np.ndarray, moments: np.ndarray
    ) -> Parts:
        """What is best for numbers [group, groups] under the loss e M e^T.

        `moments` is M [group, group] of these columns, and `slope` [group, groups] half the loss's
        gradient in the errors e, the columns outside of the group included.
        """
        scale, minimum = self.fitted_lines(fitted)
        minimum = np.zeros_like(scale) if minimum is None else minimum
        with_numbers = moments @ numbers
        size, shared = (numbers * with_numbers).sum(0), with_numbers.sum(0)
        ones = np.full_like(size, moments.sum())
        along = (numbers * slope).sum(0) + scale * size + minimum * shared
        shift = slope.sum(0) + scale * shared + minimum * ones
        return self.kept(LineLoss(size, shared, ones, along, shift), fitted)

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
        groups, importance = self._grouped(weights, importance)
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = self.fit(groups, importance)
            values = self.stored(self.nearest(groups, fitted))
        if not all(np.isfinite(part).all() for part in fitted.values()):
            raise too_large(weights, self.name, name)
        values = values.T.reshape(rows, -1)[:, :columns]
        return {"weight": np.ascontiguousarray(values)} | self.in_rows(fitted, rows, columns)

    def require_whole_groups(self, columns: int, name: str) -> None:
        """Raises CompileError for a tensor whose columns are no multiple of the group, or of what
        kernels read together.
        """
        whole = max(self.group, GROUP)
        if columns % whole:
            raise CompileError(
                f"tensor {name} has {columns} columns, not a multiple of scheme {self.name}'s "
                f"group of {whole}: use --quant f16"
            )

    def _grouped(
        self, weights: np.ndarray, importance: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """float32 [n, k] and [k] -> groups, and the weights of their squares. Columns of zeros make
        the last block whole.
        """
        missing = -weights.shape[1] % (self.group * self.together)
        if missing:
            weights = np.pad(weights, ((0, 0), (0, missing)))
        groups = np.ascontiguousarray(weights.reshape(-1, self.group).T)
        if importance is None:
            return groups, None
        importance = np.pad(importance, (0, missing), constant_values=1)
        return groups, np.tile(importance.reshape(-1, self.group).T, len(weights))

    def _members(self, fitted: Parts, rows: int) -> list[Parts]:
        """What is fitted to one block of each row -> what is fitted to its groups, [rows] each."""
        return [
            {
                name: part.reshape(rows, -1)[:, min(member, part.size // rows - 1)]
                for name, part in fitted.items()
            }
            for member in range(self.together)
        ]
