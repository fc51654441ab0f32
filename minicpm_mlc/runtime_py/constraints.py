"""Changes to the logits of one answer that are no grammar: biases, and no end before its time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from minicpm_mlc.runtime_py.request import Constraint


class Bias:
    """Adds a number to the logits of some tokens."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._ids = np.fromiter(biases, np.int64)
        self._added = np.fromiter(biases.values(), np.float32)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Logits float32 [vocab] with the numbers added."""
        changed = logits.copy()
        changed[self._ids] += self._added
        return changed

    def accept(self, token_id: int) -> None:
        """Nothing depends on it."""


class NoEnd:
    """No end token before `count` tokens; None: never."""

    def __init__(self, eos_token_ids: Collection[int], count: int | None) -> None:
        self._ids = sorted(eos_token_ids)
        self._left = count

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Logits float32 [vocab], an end token's -inf."""
        if self._left == 0:
            return logits
        changed = logits.copy()
        changed[self._ids] = -np.inf
        return changed

    def accept(self, token_id: int) -> None:
        """Counts it."""
        self._left = self._left and self._left - 1


class Chain:
    """Several constraints, the first one first."""

    def __init__(self, parts: Sequence[Constraint]) -> None:
        self._parts = parts

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Logits float32 [vocab] after all of them."""
        for part in self._parts:
            logits = part.apply(logits)
        return logits

    def accept(self, token_id: int) -> None:
        """Tells all of them."""
        for part in self._parts:
            part.accept(token_id)
