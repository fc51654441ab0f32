"""Log-probabilities of tokens, of the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minicpm_mlc.runtime_py.events import Scored


def score(logits: np.ndarray, token_id: int, count: int) -> Scored:
    """A token's log-probability, and those of the `count` likeliest, of logits float32 [vocab]."""
    return scores(logits[None], [token_id], count)[0]


def scores(logits: np.ndarray, token_ids: Sequence[int], count: int) -> list[Scored]:
    """The same of n tokens, each drawn from its row of logits float32 [n, vocab]. Ties of the
    likeliest go to the lower id.
    """
    largest = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=1, dtype=np.float64))
    shift = largest[:, 0].astype(np.float64) + total
    own = logits[np.arange(len(token_ids)), token_ids] - shift
    top = _largest(logits, count)
    found = []
    for row, token_id in enumerate(token_ids):
        ids = top[row].tolist()
        likely = tuple((i, float(logits[row, i] - shift[row])) for i in ids)
        found.append(Scored(token_id, float(own[row]), likely))
    return found


def _largest(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids int64 [n, count] of each row's largest, the largest first."""
    count = min(count, logits.shape[1])
    if not count:
        return np.empty((len(logits), 0), np.int64)
    ids = np.sort(np.argpartition(logits, -count, axis=1)[:, -count:], axis=1)
    order = np.argsort(-np.take_along_axis(logits, ids, axis=1), axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1)
