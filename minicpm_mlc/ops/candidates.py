"""What a token is drawn from where few are likely: a row's largest logits, and the sum that makes
shares of them. GPUs have it, so that the other logits stay there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.bundle.kernel_cases import Tiled
from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.operator import Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, sample
from minicpm_mlc.ops.top_k import PADDING, PERIOD

MOST = 64  # that are found of a row


@dataclass(frozen=True)
class Candidates(Operator):
    """The k largest of the first `vocab` columns, descending, ties to the lower one, and the sum of
    exp((x - largest) / temperature) over all of them. Temperatures are above 0; no logit is NaN.
    """

    vocab: int
    k: int

    @classmethod
    def of(cls, vocab: int) -> Candidates:
        """Of a vocabulary as many as there may be."""
        return cls(vocab, min(MOST, vocab))

    def arguments(self) -> dict[str, Argument]:
        return {
            "logits": takes("float32", "n", -(-self.vocab // LANES) * LANES),
            "temperatures": takes("float32", "n"),
            "ids": gives("int32", "n", self.k),
            "values": gives("float32", "n", self.k),
            "sums": gives("float32", "n"),
        }

    def define(
        self, logits: np.ndarray, temperatures: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counted = logits[:, : self.vocab].astype(np.float64)
        ids = np.argsort(-counted, axis=1, kind="stable")[:, : self.k]
        values = np.take_along_axis(counted, ids, 1)
        sums = np.exp((counted - values[:, :1]) / temperatures[:, None]).sum(1)
        return ids.astype(np.int32), values, sums

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(1, 2, most=3):
            logits = draw.normal(n, -(-self.vocab // LANES) * LANES, scale=4, period=PERIOD)
            if draw.whole:
                logits.tile[:, self.vocab :] = PADDING
                logits.tile[0, : self.vocab] = draw.random.integers(-1, 2, self.vocab)  # ties
            yield sample(logits, Tiled(np.array([0.5], np.float32), (n,)))

    def fits(self, traits: Any) -> bool:
        return traits.launches

    def outcome(self, arguments: Sequence[np.ndarray]) -> np.ndarray:
        ids, values, sums = arguments[-3:]
        return np.concatenate([ids, values, sums[:, None]], 1)

    @classmethod
    def variants(cls) -> Iterator[Candidates]:
        yield from (cls.of(vocab) for vocab in (5, 100, 1091, 17000))
