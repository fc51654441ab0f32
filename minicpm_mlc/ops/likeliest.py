"""The likeliest token of each row of logits: all that a greedy step needs of them. GPUs have it, so
that the logits stay there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.operator import EXACT, Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, sample
from minicpm_mlc.ops.top_k import PADDING, PERIOD


@dataclass(frozen=True)
class Likeliest(Operator):
    """The largest of the first `vocab` columns, of equal ones the lowest, and its logit; a NaN is
    the largest of all.
    """

    limit: ClassVar[float] = EXACT
    grid_limit: ClassVar[float] = EXACT
    vocab: int

    def arguments(self) -> dict[str, Argument]:
        return {
            "logits": takes("float32", "n", -(-self.vocab // LANES) * LANES),
            "ids": gives("int32", "n"),
            "values": gives("float32", "n"),
        }

    def define(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = logits[:, : self.vocab].argmax(1)  # the first NaN, if there is one
        return ids.astype(np.int32), logits[np.arange(len(ids)), ids]

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(1, 2):
            logits = draw.normal(n, -(-self.vocab // LANES) * LANES, scale=4, period=PERIOD)
            if draw.whole:
                logits.tile[:, self.vocab :] = PADDING
                logits.tile[0, : self.vocab] = draw.random.integers(-1, 2, self.vocab)  # ties
            yield sample(logits)

    def fits(self, traits: Any) -> bool:
        return traits.launches

    def outcome(self, arguments: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(arguments[-2:], 1)

    @classmethod
    def variants(cls) -> Iterator[Likeliest]:
        yield from (cls(vocab) for vocab in (5, 100, 1091, 70001))
