"""What one model says about a text beside what another says: divergence, agreement, perplexity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

ROWS = 32  # of logits that are float64 at a time

# the logits after each token, float32 [rows, vocab] of so many tokens at a time
Answers = Callable[[Sequence[int], int], Iterator[np.ndarray]]


@dataclass(frozen=True)
class TextQuality:
    """One text. `divergence` is the Kullback-Leibler divergence of the next token's probabilities
    from the reference's, nats, a mean over the tokens; `agreement` how often the likeliest token is
    the same; `perplexity` of the text, and by the reference.
    """

    text: str
    tokens: int
    divergence: float
    agreement: float
    perplexity: float
    reference_perplexity: float


@dataclass
class Comparison:
    """The sums over a text's tokens."""

    text: str
    ids: Sequence[int]
    done: int = 0
    divergence: float = 0.0
    agreement: int = 0
    surprise: float = 0.0
    reference_surprise: float = 0.0

    def add(self, own: np.ndarray, exact: np.ndarray) -> None:
        """The logits [rows, vocab] after the next tokens."""
        for start in range(0, len(own), ROWS):
            rows = slice(start, start + ROWS)
            self._add(log_probabilities(own[rows]), log_probabilities(exact[rows]))

    def _add(self, own: np.ndarray, exact: np.ndarray) -> None:
        self.divergence += float((np.exp(exact) * (exact - own)).sum())
        self.agreement += int((own.argmax(1) == exact.argmax(1)).sum())
        following = np.array(self.ids[self.done + 1 : self.done + 1 + len(own)], np.int64)
        said = np.arange(len(following)), following
        self.surprise -= float(own[said].sum())
        self.reference_surprise -= float(exact[said].sum())
        self.done += len(own)

    def result(self) -> TextQuality:
        """Once all tokens were added."""
        n, predicted = len(self.ids), max(len(self.ids) - 1, 1)
        perplexities = (self.surprise, self.reference_surprise)
        return TextQuality(
            self.text,
            n,
            self.divergence / n,
            self.agreement / n,
            *(float(np.exp(surprise / predicted)) for surprise in perplexities),
        )


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits [n, vocab] -> float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def compare(comparison: Comparison, own: Answers, exact: Answers, chunk: int) -> TextQuality:
    """What one says about a text beside what the other says."""
    pairs = zip(own(comparison.ids, chunk), exact(comparison.ids, chunk), strict=True)
    for mine, theirs in pairs:
        comparison.add(mine, theirs)
    return comparison.result()
