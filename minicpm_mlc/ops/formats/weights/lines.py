"""Lines w = scale * number + minimum through the weights of a group, by least squares. Groups are
columns, float32 [group, groups].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Parts of a group's range that its steps are tried over: cutting the ends off makes the steps
# smaller for all other weights.
PARTS = (1.0, 0.95, 0.9)

Line = tuple[np.ndarray, np.ndarray]  # scale and minimum, [groups] each


@dataclass(frozen=True)
class LineLoss:
    """What a line costs groups whose numbers are fixed, less what no line can change.

    scale^2 size + 2 scale minimum shared + minimum^2 ones - 2 scale along - 2 minimum shift: sums
    of weighted squares, of numbers, 1 and weights. float32 [groups] each.
    """

    size: np.ndarray
    shared: np.ndarray
    ones: np.ndarray
    along: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(
        cls, groups: np.ndarray, numbers: np.ndarray, importance: np.ndarray | None = None
    ) -> LineLoss:
        """Of squares with these weights, [group, groups] or [group, 1]; None: all 1."""
        one = np.ones((1, 1), np.float32) if importance is None else importance
        counted = numbers * one
        return cls(
            np.einsum("kg,kg->g", counted, numbers),
            counted.sum(0),
            np.broadcast_to(one, groups.shape).sum(0),
            np.einsum("kg,kg->g", counted, groups),
            (groups * one).sum(0),
        )

    def value(self, scale: np.ndarray, minimum: np.ndarray | None) -> np.ndarray:
        """The loss of each group."""
        alone = scale * (scale * self.size - 2 * self.along)
        if minimum is None:
            return alone
        return alone + minimum * (minimum * self.ones + 2 * (scale * self.shared - self.shift))

    def scale(self, otherwise: np.ndarray) -> np.ndarray:
        """The best line's; `otherwise` where the numbers are all one."""
        room = self.size * self.ones - self.shared**2
        found = room > 1e-6 * self.size * self.ones
        best = self.along * self.ones - self.shift * self.shared
        return np.divide(best, room, out=otherwise.astype(np.float32), where=found)

    def scale_for(self, minimum: np.ndarray | float) -> np.ndarray:
        """The best beside this minimum."""
        return divided(self.along - minimum * self.shared, self.size)

    def minimum_for(self, scale: np.ndarray) -> np.ndarray:
        """The best beside this scale."""
        return divided(self.shift - scale * self.shared, self.ones)


def best_scale(
    groups: np.ndarray,
    importance: np.ndarray | None,
    limits: tuple[int, int],
    extremes: Sequence[float],
    dtype: type,
) -> np.ndarray:
    """The scale of least squared error, as `dtype`, to numbers within `limits`. The weight of
    largest size is tried at each of `extremes`, and of the numbers that these lead to the best
    ones' least-squares scale is taken.

    Numbers q of weights w ask for the scale s = w q / q q and leave the error w w - s (2 w q - s q
    q).
    """
    high, low = groups.max(0), groups.min(0)
    extreme = np.where(high > -low, high, low)
    best = (extreme / np.float32(extremes[0])).astype(dtype)
    explained = np.full_like(extreme, -np.inf)
    for target in extremes:
        q = steps(groups, extreme / np.float32(target), *limits)
        counted = q if importance is None else q * importance
        along, size = (np.einsum("kg,kg->g", v, counted) for v in (groups, q))
        scale = divided(along, size).astype(dtype)
        gain = scale * (2 * along - scale * size)
        better = gain > explained
        np.copyto(best, scale, where=better)
        np.copyto(explained, gain, where=better)
    return best


def best_line(
    groups: np.ndarray, importance: np.ndarray | None, largest: int, dtype: type, ceiling: float
) -> Line:
    """Of the lines for PARTS of the range, the one of least squared error as `dtype`, to numbers
    0..largest. No minimum is above `ceiling`.
    """
    low, high = np.minimum(groups.min(0), np.float32(ceiling)), groups.max(0)
    middle, reach = (low + high) / 2, (high - low) / 2
    best = (reach / np.float32(largest / 2)).astype(dtype), low.astype(dtype)
    least = np.full_like(low, np.inf)
    for part in PARTS:
        shortened = reach * np.float32(part)
        step = shortened / np.float32(largest / 2)
        line = _line(
            steps(groups - (middle - shortened), step, 0, largest), groups, importance, ceiling
        )
        scale, minimum = (term.astype(dtype) for term in line)
        numbers = steps(groups - minimum, scale, 0, largest)
        error = (numbers * scale.astype(np.float32) + minimum - groups) ** 2
        error = (error if importance is None else error * importance).sum(0)
        better = error < least
        for kept, found in zip((*best, least), (scale, minimum, error), strict=True):
            np.copyto(kept, found, where=better)
    return best


def _line(
    numbers: np.ndarray, groups: np.ndarray, importance: np.ndarray | None, ceiling: float
) -> Line:
    """The line that brings numbers closest to weights."""
    share = 1 / np.float32(len(numbers)) if importance is None else importance / importance.sum(0)
    numbers_mean, weights_mean = ((v * share).sum(0) for v in (numbers, groups))
    centred = numbers - numbers_mean
    counted = centred * share
    along, size = (np.einsum("kg,kg->g", v, counted) for v in (groups, centred))
    scale = divided(along, size)
    minimum = weights_mean - scale * numbers_mean
    above = minimum > ceiling
    if above.any():
        minimum[above] = ceiling
        chosen = None if importance is None else np.broadcast_to(importance, groups.shape)[:, above]
        loss = LineLoss.of(groups[:, above], numbers[:, above], chosen)
        scale[above] = loss.scale_for(ceiling)
    return scale, minimum


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
