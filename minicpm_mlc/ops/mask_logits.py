"""Logits under a grammar: those of tokens that it does not allow become the lowest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.operator import EXACT, Argument, Operator, takes, updates
from minicpm_mlc.ops.samples import Draw, Sample, Tiled, sample

LOWEST = -3e38  # below every logit, and finite
BITS = 32  # tokens in one word of a mask
PERIOD = 61  # words that differ


def mask_logits_definition(mask: np.ndarray, logits: np.ndarray) -> None:
    """logits [n, v] become LOWEST, in place, in every column j whose bit j % 32 of
    mask[row, j // 32], int32 [n, ceil(v / 32)], is 0.
    """
    columns = np.arange(logits.shape[1])
    allowed = mask[:, columns // BITS] >> (columns % BITS) & 1
    logits[allowed == 0] = LOWEST


@dataclass(frozen=True)
class MaskLogits(Operator):
    """Logits of `vocab` tokens, padded to a multiple of 16; a mask's bits of the padding are 0."""

    grid_limit: ClassVar[float] = EXACT
    vocab: int

    @property
    def columns(self) -> int:
        """Columns of the logits, padded."""
        return -(-self.vocab // LANES) * LANES

    def arguments(self) -> dict[str, Argument]:
        return {
            "mask": takes("int32", "n", -(-self.vocab // BITS)),
            "logits": updates("float32", "n", self.columns),
        }

    def define(self, mask: np.ndarray, logits: np.ndarray) -> None:
        mask_logits_definition(mask, logits)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        words = -(-self.vocab // BITS)
        for n in draw.rows(2):
            size = (n, words if draw.whole else min(words, PERIOD))
            mask = draw.generator(size).integers(-(2**31), 2**31, size).astype(np.int32)
            yield sample(Tiled(mask, (n, words)), draw.normal(n, self.columns, scale=4))

    @classmethod
    def variants(cls) -> Iterator[MaskLogits]:
        yield from (cls(vocab) for vocab in (64, 100, 1091))
