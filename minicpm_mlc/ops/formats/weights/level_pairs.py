"""Scales and minimums of 6 bits for each 32 columns: 0.5 bits a weight with their units.

Of each pair of groups `levels` has three bytes: the low four bits of a group's two levels in each
of the first two, the minimum's above, and both groups' high bits in the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.formats.weights.base import GroupTensor, Parts, Stored
from minicpm_mlc.ops.formats.weights.levels import BLOCK, LevelScheme
from minicpm_mlc.ops.formats.weights.lines import best_line
from minicpm_mlc.ops.tir import Buffer, Expr, T, splat, typed


@dataclass(frozen=True)
class PairScheme(LevelScheme):
    """w = scale * value + minimum, both of two levels; the minimum's unit has its sign, and no
    minimum is above 0.
    """

    has_minimum = True
    level_type = np.uint8
    largest_level = 63

    @property
    def group_tensors(self) -> tuple[GroupTensor, ...]:
        return (
            GroupTensor("scale", "float16", BLOCK, usual=(1e-4, 6e-4)),
            GroupTensor("minimum", "float16", BLOCK, usual=(-5e-3, -3e-4)),
            GroupTensor("levels", "uint8", 2 * GROUP, usual=(0, 256), count=3),
        )

    def first_lines(self, groups: np.ndarray, importance: np.ndarray | None) -> Parts:
        scale, minimum = best_line(groups, importance, self.values.largest, np.float32, ceiling=0)
        return {"scale": scale, "minimum": minimum}

    def levels_stored(self, scale: np.ndarray, minimum: np.ndarray | None) -> np.ndarray:
        assert minimum is not None
        return level_bytes(scale, minimum)

    def levels_of(self, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
        stored, groups = parts["levels"], parts["weight"].shape[1] // GROUP
        triples = stored.reshape(len(stored), -1, 3)
        low, both = triples[..., :2], triples[..., 2:]
        high = np.concatenate([both & 15, both >> 4], axis=2)
        levels = low & 15 | (high & 3) << 4, low >> 4 | high >> 2 << 4
        scale, minimum = (level.reshape(len(stored), -1)[:, :groups] for level in levels)
        return scale, minimum

    def scale(self, stored: Stored, block: Expr, group: Expr, lane: Expr, lanes: int) -> Expr:
        low, high = _bytes_at(stored["levels"], block, group, lane, lanes)
        level = _masked(low, 15, lanes) | T.shift_left(_masked(high, 3, lanes), _int(4, lanes))
        return self.in_unit(stored["scale"], level, block, group, lane, lanes)

    def minimum(self, stored: Stored, block: Expr, group: Expr, lane: Expr, lanes: int) -> Expr:
        low, high = _bytes_at(stored["levels"], block, group, lane, lanes)
        level = T.shift_right(low, _int(4, lanes))
        level = level | T.shift_left(_masked(high, 12, lanes), _int(2, lanes))
        return self.in_unit(stored["minimum"], level, block, group, lane, lanes)


def level_bytes(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """The tensor `levels` of uint8 [n, groups] each: uint8 [n, 3 ceil(groups / 2)]."""
    odd = ((0, 0), (0, scale.shape[1] % 2))
    scale, minimum = (np.pad(level, odd).reshape(len(level), -1, 2) for level in (scale, minimum))
    low = scale & 15 | (minimum & 15) << 4
    high = scale >> 4 | minimum >> 4 << 2
    both = high[..., :1] | high[..., 1:] << 4
    return np.concatenate([low, both], axis=2).reshape(len(scale), -1)


def _bytes_at(
    levels: Buffer, block: Expr, group: Expr, lane: Expr, lanes: int
) -> tuple[Expr, Expr]:
    """int32: the low bits of a group's two levels; their high bits as the last four."""
    first, wide = group // 2 * 3, typed("int32", lanes)
    low = T.Bind(T.Cast(wide, levels[block, first + group % 2, lane]))
    both = T.Cast(wide, levels[block, first + 2, lane])
    return low, T.Bind(T.shift_right(both, splat(T.Cast("int32", group % 2 * 4), lanes)))


def _masked(bits: Expr, mask: int, lanes: int) -> Expr:
    return T.bitwise_and(bits, _int(mask, lanes))


def _int(value: int, lanes: int) -> Expr:
    return splat(T.int32(value), lanes)
