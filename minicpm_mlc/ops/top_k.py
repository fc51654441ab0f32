"""The likeliest tokens of each row of logits and their log-probabilities: all that a draft needs
of a head's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.operator import Argument, Operator, gives, takes
from minicpm_mlc.ops.samples import Draw, Sample, sample

PERIOD = 4099  # logits that differ; a larger vocabulary's are the same again: ties
PADDING = 1e6  # in columns that don't count: larger than any logit


def top_k_definition(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """logits [n, v] -> (ids int32, log-probabilities float64) [n, k] of each row's k largest
    columns, descending, ties to the lower one.
    """
    sums = np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return ids.astype(np.int32), np.take_along_axis(logits - sums, ids, 1)


@dataclass(frozen=True)
class TopK(Operator):
    """The k largest of the first `vocab` columns; the columns behind them don't count.

    Raises CompileError unless 1 <= k <= vocab.
    """

    grid_limit: ClassVar[float] = 1e-12
    vocab: int
    k: int

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocab:
            seen = f"top_k of {self.k} tokens from a vocabulary of {self.vocab}"
            raise CompileError(f"{seen}; give 1 to {self.vocab}")

    def arguments(self) -> dict[str, Argument]:
        return {
            "logits": takes("float32", "n", -(-self.vocab // LANES) * LANES),
            "ids": gives("int32", "n", self.k),
            "values": gives("float32", "n", self.k),
        }

    def define(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return top_k_definition(logits[:, : self.vocab], self.k)

    def samples(self, draw: Draw) -> Iterator[Sample]:
        for n in draw.rows(2):
            logits = draw.normal(n, -(-self.vocab // LANES) * LANES, scale=4, period=PERIOD)
            if draw.whole:
                logits.tile[:, self.vocab :] = PADDING
                logits.tile[0, : self.vocab] = draw.random.integers(-1, 2, self.vocab)  # ties
            yield sample(logits)

    def outcome(self, arguments: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(arguments[-2:], 1)

    @classmethod
    def variants(cls) -> Iterator[TopK]:
        yield from (cls(vocab, k) for vocab, k in ((100, 16), (1091, 8)))
