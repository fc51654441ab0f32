"""Rounds a matrix so that its outputs stay close, not its weights: GPTQ, then sweeps of descent.

The loss of a row with errors e is e H e^T, H the second moments of its inputs, x x^T. Columns are
rounded one after the other, and each takes over what the errors so far moved. With H = R R^T, R
upper triangular, column j's target is w_j + sum over i < j of e_i R_ij / R_jj. The columns with the
largest moments go first: what comes last makes up for most. Scales and minimums are those of the
least squared error, weighted by the moments. GPTQ sees only the columns before; a sweep then goes
over the groups again, with all others fixed: scale and minimum by least squares, then each column.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.groups import GroupScheme

DAMPING = 0.2  # of every channel's own moment: what the calibration text didn't show
ROWS = 4096  # rounded at a time
SWEEPS = 2
BLOCK = 32  # columns whose errors are passed on together
SPAN = 256  # the same in a sweep


@dataclass(frozen=True)
class Moments:
    """What rounding needs of a linear's inputs, made once for all its rows.

    `matrix` is H, float32 [k, k], damped. `order` are its columns in the order of rounding, and
    `shares` float32 [k, k], in that order, says how much of an error a later column takes over.
    """

    matrix: np.ndarray
    order: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, moments: np.ndarray) -> Moments:
        """From H, float64 or float32 [k, k], which is overwritten."""
        diagonal = np.diag(moments).copy()
        diagonal[diagonal <= 0] = max(diagonal.mean(), 1e-30)  # an input that was always 0
        moments[np.diag_indices(len(moments))] = diagonal * (1 + DAMPING)
        order = np.argsort(-diagonal, kind="stable")
        backwards = order[::-1]
        root = np.linalg.cholesky(moments[np.ix_(backwards, backwards)])[::-1, ::-1]
        shares = np.ascontiguousarray(root / np.diag(root), np.float32)
        return cls(moments.astype(np.float32, copy=False), order, shares)


def compensated(
    weights: np.ndarray, moments: Moments, scheme: GroupScheme, pool: Executor
) -> tuple[Parts, np.ndarray]:
    """float32 [n, k] -> its parts, and the weights [n, k] that they stand for."""
    blocks = [weights[start : start + ROWS] for start in range(0, len(weights), ROWS)]
    done = list(pool.map(lambda rows: _Rows(rows, moments, scheme).finish(), blocks))
    names = done[0][0]
    parts = {name: np.concatenate([each[0][name] for each in done]) for name in names}
    return parts, np.concatenate([each[1] for each in done])


class _Rows:
    """Some rows of a matrix on their way: columns first, as NumPy is quickest along rows."""

    def __init__(self, weights: np.ndarray, moments: Moments, scheme: GroupScheme) -> None:
        self.weights = np.ascontiguousarray(weights.T)
        self.moments = moments
        self.scheme = scheme
        self.group = scheme.group
        self.numbers = np.empty_like(self.weights)
        self.errors = np.zeros_like(self.weights)  # weights less what stands for them
        self.fitted: list[Parts] = []  # to each group

    def finish(self) -> tuple[Parts, np.ndarray]:
        """The parts of these rows, and their weights."""
        self._fit()
        self._round()
        gradient = self.moments.matrix @ self.errors  # half of it
        for _ in range(SWEEPS):
            for start in range(0, len(self.weights), SPAN):
                self._sweep(slice(start, min(start + SPAN, len(self.weights))), gradient)
        values = self.scheme.stored(np.ascontiguousarray(self.numbers.T))
        parts = {"weight": values} | self.scheme.joined(self.fitted)
        return parts, np.ascontiguousarray((self.weights - self.errors).T)

    def _fit(self) -> None:
        """Scales and minimums for the weights as they are."""
        self.fitted = self.scheme.fit_columns(self.weights, np.diag(self.moments.matrix))

    def _round(self) -> None:
        """GPTQ, column by column, in order."""
        order, shares = self.moments.order, self.moments.shares
        errors = np.zeros_like(self.errors)  # in order
        for start in range(0, len(order), BLOCK):
            block = slice(start, start + BLOCK)
            columns = order[block]
            target = self.weights[columns] + shares[:start, block].T @ errors[:start]
            for i, column in enumerate(columns):
                self._put(column, target[i], self.fitted[column // self.group])
                errors[start + i] = self.errors[column]
                later = slice(start + i + 1, start + BLOCK)
                target[i + 1 :] += shares[start + i, later, None] * errors[start + i]

    def _put(self, column: int, target: np.ndarray, fitted: Parts) -> None:
        """Rounds one column of all rows to what is nearest to its target."""
        self.numbers[column] = self.scheme.nearest(target, fitted)
        self.errors[column] = self.weights[column] - self.scheme.restored(
            self.numbers[column], fitted
        )

    def _sweep(self, span: slice, gradient: np.ndarray) -> None:
        """Every group of a span of columns again, with all others as they are. `gradient` [k, rows]
        is brought up to date at the end; within the span after each group.
        """
        first, near = self.errors[span].copy(), gradient[span].copy()
        for columns in self._groups(span):
            g, here = columns.start // self.group, columns.start - span.start
            own = self.moments.matrix[columns, columns]
            before = self.errors[columns].copy()
            slope = near[here : here + self.group].copy()
            self._refit(g, columns, slope, own)
            slope += own @ (self.errors[columns] - before)
            self._round_again(g, columns, slope, own)
            near += self.moments.matrix[span, columns] @ (self.errors[columns] - before)
        gradient += self.moments.matrix[:, span] @ (self.errors[span] - first)

    def _groups(self, span: slice | None = None) -> Iterator[slice]:
        within = span or slice(0, len(self.weights))
        for start in range(within.start, within.stop, self.group):
            yield slice(start, start + self.group)

    def _refit(self, g: int, columns: slice, slope: np.ndarray, own: np.ndarray) -> None:
        """Scale and minimum of a group that are best for its numbers."""
        numbers = self.numbers[columns]
        self.fitted[g] = fitted = self.scheme.refit(numbers, self.fitted[g], slope, own)
        self.errors[columns] = self.weights[columns] - self.scheme.restored(numbers, fitted)

    def _round_again(self, g: int, columns: slice, slope: np.ndarray, own: np.ndarray) -> None:
        """Each column of a group to its best number, the largest moments first."""
        diagonal = np.diag(own)
        for i in np.argsort(-diagonal, kind="stable"):
            column = columns.start + i
            before = self.errors[column].copy()
            target = self.weights[column] - before + slope[i] / diagonal[i]
            self._put(column, target, self.fitted[g])
            slope += own[:, i, None] * (self.errors[column] - before)
