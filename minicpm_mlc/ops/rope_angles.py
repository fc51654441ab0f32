"""The cosines and sines by which rotary position embedding turns queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.operator import Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, Tiled, ids, sample

LONGEST = 131072  # tokens of context that positions of samples are drawn from


def rope_angles_definition(
    positions: np.ndarray, inv_freq: np.ndarray, attention_scale: float = 1.0
) -> np.ndarray:
    """positions [n], inv_freq f32[d/2] -> [cos | sin] float64 [n, d]; the angle itself is a
    float32 product.
    """
    angle = positions.astype(np.float32)[:, None] * inv_freq.astype(np.float32)
    angle = angle.astype(np.float64)
    return np.concatenate([np.cos(angle), np.sin(angle)], -1) * attention_scale


@dataclass(frozen=True)
class RopeAngles(Operator):
    """Angles of one head's pairs (i, i + d/2), times `attention_scale`."""

    head_dim: int
    attention_scale: float = 1.0

    def arguments(self) -> dict[str, Argument]:
        return {
            "positions": takes("int32", "n"),
            "inv_freq": takes("float32", self.head_dim // 2),
            "cos_sin": gives("float32", "n", self.head_dim),
        }

    def define(self, positions: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
        return rope_angles_definition(positions, inv_freq, self.attention_scale)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        exponents = np.linspace(0, 1, self.head_dim // 2, dtype=np.float32)
        frequencies = Tiled.whole(1e4**-exponents)
        for n in draw.rows(4):
            positions = draw.below(LONGEST, n) if draw.whole else ids(0, 1, 77, 4095)
            yield sample(positions, frequencies)

    @classmethod
    def variants(cls) -> Iterator[RopeAngles]:
        yield from (cls(head_dim, 1.25) for head_dim in (64, 128))
