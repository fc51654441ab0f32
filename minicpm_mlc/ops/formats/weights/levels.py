"""Scales in two levels: a small integer, the level, for each group, and an f16 unit that multiplies
the levels of a block of 256 columns. Minimums, where there are some, are the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.ops.formats.weights.base import Parts, widened
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.formats.weights.lines import LineLoss, divided, halves
from minicpm_mlc.ops.tir import Buffer, Expr

BLOCK = 256  # columns that share the units
ROUNDS = 3  # of fitting: numbers, units and levels in turn


@dataclass(frozen=True)
class LevelScheme(GroupScheme):
    """w = unit * level * number, and unit * level of the minimum where there is one. A row's last
    block may be shorter.

    What is fitted: `scale`, f16 units [blocks], and `scale_level` [groups]; `minimum` and
    `minimum_level` beside them.
    """

    level_type: ClassVar[type]
    largest_level: ClassVar[int]
    tables = "w8"
    leveled = True

    @property
    def together(self) -> int:
        """Groups of a block."""
        return BLOCK // self.group

    @abstractmethod
    def first_lines(self, groups: np.ndarray, importance: np.ndarray | None) -> Parts:
        """Scales, and minimums, of least squared error, as float32 [groups]."""

    @abstractmethod
    def levels_stored(self, scale: np.ndarray, minimum: np.ndarray | None) -> np.ndarray:
        """The tensor `levels` of rows' levels, [n, groups] each."""

    @abstractmethod
    def levels_of(self, parts: Parts) -> tuple[np.ndarray, np.ndarray | None]:
        """Its inverse, of parts as `quantize` makes them."""

    @property
    def terms_fitted(self) -> tuple[str, ...]:
        """What has levels."""
        return ("scale", "minimum") if self.has_minimum else ("scale",)

    def lines(self, parts: Parts) -> tuple[np.ndarray, np.ndarray | None]:
        scale, minimum = self.levels_of(parts)
        scale = self._in_units(parts["scale"], scale)
        return scale, None if minimum is None else self._in_units(parts["minimum"], minimum)

    def fitted_lines(self, fitted: Parts) -> tuple[np.ndarray, np.ndarray | None]:
        lines = [self._in_units(fitted[t], fitted[f"{t}_level"]) for t in self.terms_fitted]
        return lines[0], lines[1] if self.has_minimum else None

    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        """The best of a few rounds, by block."""
        fitted = best = self._leveled(self.first_lines(groups, importance))
        least = np.full(fitted["scale"].shape, np.inf, np.float32)
        for _ in range(ROUNDS):
            loss = LineLoss.of(groups, self.nearest(groups, fitted), importance)
            scale, minimum = self.fitted_lines(fitted)
            value = self._blocks(loss.value(scale, minimum)).sum(1)
            best = self._where(value < least, fitted, best)
            least = np.minimum(value, least)
            fitted = self.kept(loss, fitted | self._best_units(loss, fitted))
        return best

    def kept(self, loss: LineLoss, fitted: Parts) -> Parts:
        """The levels, in units as they are: each the best beside the other one."""
        if not self.has_minimum:
            level = self._level(loss.scale_for(0.0), fitted["scale"])
            return fitted | {"scale_level": level}
        unit, other = fitted["scale"], fitted["minimum"]
        level = self._level(loss.scale(self.fitted_lines(fitted)[0]), unit)
        minimum = self._level(loss.minimum_for(self._in_units(unit, level)), other)
        level = self._level(loss.scale_for(self._in_units(other, minimum)), unit)
        return fitted | {"scale_level": level, "minimum_level": minimum}

    def in_rows(self, fitted: Parts, rows: int, columns: int) -> Parts:
        groups = columns // self.group
        levels = [fitted[f"{t}_level"].reshape(rows, -1)[:, :groups] for t in self.terms_fitted]
        units = {t: fitted[t].reshape(rows, -1) for t in self.terms_fitted}
        return units | {"levels": self.levels_stored(levels[0], *levels[1:])}

    def joined(self, fitted: Sequence[Parts]) -> Parts:
        levels = [np.stack([f[f"{t}_level"] for f in fitted], axis=1) for t in self.terms_fitted]
        first = fitted[:: self.together]  # of each block
        units = {t: np.stack([one[t] for one in first], axis=1) for t in self.terms_fitted}
        return units | {"levels": self.levels_stored(levels[0], *levels[1:])}

    def _leveled(self, lines: Parts) -> Parts:
        """Units that the line of largest size in each block reaches with its last level."""
        fitted = {}
        for term, numbers in lines.items():
            blocks = self._blocks(numbers)
            extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)[:, 0]
            fitted[term] = halves(extreme / self.largest_level)
            fitted[f"{term}_level"] = self._level(numbers, fitted[term])
        return fitted

    def _best_units(self, loss: LineLoss, fitted: Parts) -> Parts:
        """The units that cost a block least with its levels as they are: w = scale unit * (scale
        level * number) + minimum unit * minimum level is a line too.
        """
        scale = fitted["scale_level"].astype(np.float32)
        minimum = fitted["minimum_level"].astype(np.float32) if self.has_minimum else 0 * scale
        terms = (
            scale**2 * loss.size,
            scale * minimum * loss.shared,
            minimum**2 * loss.ones,
            scale * loss.along,
            minimum * loss.shift,
        )
        whole = LineLoss(*(self._blocks(term).sum(1) for term in terms))
        if not self.has_minimum:
            return {"scale": halves(whole.scale_for(0.0))}
        unit = whole.scale(fitted["scale"])
        return {"scale": halves(unit), "minimum": halves(whole.minimum_for(unit))}

    def in_unit(
        self, units: Buffer, level: Expr, block: Expr, group: Expr, lane: Expr, lanes: int
    ) -> Expr:
        """A group's level times its unit, in kernels."""
        return widened(units[block, group // self.together, lane], lanes) * widened(level, lanes)

    def _blocks(self, numbers: np.ndarray) -> np.ndarray:
        """[groups] -> [blocks, groups of a block]."""
        return numbers.reshape(-1, self.together)

    def _spread(self, units: np.ndarray, like: np.ndarray) -> np.ndarray:
        """float32 units [..., blocks], one for each of the groups [..., groups]."""
        if units.shape != like.shape:
            units = np.repeat(units, self.together, axis=-1)[..., : like.shape[-1]]
        return units.astype(np.float32)

    def _in_units(self, units: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Levels times their units, float32, exactly."""
        return self._spread(units, levels) * levels

    def _level(self, numbers: np.ndarray, units: np.ndarray) -> np.ndarray:
        """The nearest levels."""
        lowest = 0 if np.iinfo(self.level_type).min == 0 else -self.largest_level
        levels = np.rint(divided(numbers, self._spread(units, numbers)))
        return np.clip(levels, lowest, self.largest_level).astype(self.level_type)

    def _where(self, better: np.ndarray, these: Parts, others: Parts) -> Parts:
        """Of each block the one or the other."""
        of_groups = np.repeat(better, self.together)
        return {
            name: np.where(better if part.shape == better.shape else of_groups, part, others[name])
            for name, part in these.items()
        }
