"""Drawing from a row's largest logits, which a GPU finds; the others stay there.

They are all that is needed with top-k of at most as many; with top-p or min-p where the cut lies
among them. With none of these, with penalties, a grammar or scores, all logits are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LEAST_TEMPERATURE = 1e-3  # float32 holds the exponents of what is asked of a device
MARGIN = 1e-5  # of a sum of shares: more than its rounding, here or on a device


class Few(NamedTuple):
    """A row's largest logits: tokens int32 [k], the largest first, ties to the lower id, their
    logits float32 [k], and the sum of exp((x - largest) / temperature) over the whole row.
    """

    ids: np.ndarray
    values: np.ndarray
    total: float


class RowsCandidates:
    """Those of n rows of logits, by a temperature for each row."""

    def __init__(self, rows: int, find: Callable[[np.ndarray], list[np.ndarray]]) -> None:
        """`find`: temperatures float32 [n] -> tokens [n, k], logits [n, k], sums [n]."""
        self._temperatures, self._find = np.zeros(rows, np.float32), find
        self._found: Callable[[], list[np.ndarray]] = list

    def expect(self, temperatures: np.ndarray, found: Callable[[], list[np.ndarray]]) -> None:
        """What was found for these, to be read when it is asked for."""
        self._temperatures, self._found = temperatures, found

    def of(self, row: int, temperature: float) -> Few:
        """Those of one row."""
        if self._temperatures[row] != np.float32(temperature):
            self._temperatures = np.full_like(self._temperatures, temperature)
            found = self._find(self._temperatures)
            self._found = lambda: found
        ids, values, totals = (array[row] for array in self._found())
        return Few(ids, values, float(totals))


def cut_tail(
    few: Few, weights: np.ndarray, top_p: float, min_p: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """The tokens that top-p and min-p leave, the likeliest first, and their probabilities; None
    where few don't tell. `weights` float64 [k]: exp((logit - largest) / temperature).
    """
    likely = weights >= min_p
    probs = weights[likely] / few.total
    after = np.cumsum(probs)
    if top_p < 1 and (abs(after - top_p) < MARGIN).any():
        return None
    if likely.all() and not (top_p < 1 and after[-1] > top_p):
        return None  # the cut lies among the others
    kept = probs[after - probs < top_p] if top_p < 1 else probs
    return few.ids[: len(kept)].astype(np.int64), kept / kept.sum()
