"""Growing a tree with a model that gives probabilities: EAGLE-2's beam search, for draft heads and draft models alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .tree import Draft, Tree

# (tokens of the beam, the row of the previous call that each came from) -> logits float32 [beam, vocab] after each
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]

BLOCKS = 32  # of columns; a group has one column of each


def expand(
    root: int, logits: np.ndarray, step: Step, depth: int, top_k: int, floor: float = 0.0, ids: np.ndarray | None = None
) -> Draft:
    """The tree of all tokens considered, likeliest first; the drafter's probabilities multiply along a path.

    `logits` float32 [vocab] are those after the root. Each level extends the `top_k` likeliest nodes of the level
    before by `top_k` tokens each. It ends at `depth`, or where no node of a level reaches the probability `floor`.
    """
    top_k = min(top_k, len(logits))
    values, tokens = (part[0] for part in best_tokens(logits[None], top_k, ids))
    levels = [(tokens, values, np.zeros(len(tokens), np.int64))]
    beam, first = np.arange(len(tokens)), 1  # the beam within its level, and that level's first node
    while len(levels) < depth and values[beam[0]] >= np.log(max(floor, 1e-30)):
        new_values, new_tokens = best_tokens(step(tokens[beam], beam // top_k), top_k, ids)
        parents = np.repeat(first + beam, top_k)
        first += len(tokens)
        values, tokens = (values[beam, None] + new_values).ravel(), new_tokens.ravel()
        levels.append((tokens, values, parents))
        beam = np.argsort(-values, kind="stable")[:top_k]
    return _as_draft(root, *(np.concatenate(part) for part in zip(*levels, strict=True)))


def _as_draft(root: int, tokens: np.ndarray, values: np.ndarray, parents: np.ndarray) -> Draft:
    order = np.argsort(-values, kind="stable")
    place = np.zeros(len(tokens) + 1, np.int64)
    place[1 + order] = np.arange(1, len(tokens) + 1)
    tree = Tree([root, *tokens[order].tolist()], [-1, *place[parents[order]].tolist()])
    return Draft(tree, np.exp(np.concatenate([[0.0], values[order]])))


def best_tokens(logits: np.ndarray, k: int, ids: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of logits [n, vocab], descending: (log-probabilities float64, ids) [n, k].

    The k largest lie in the k groups of columns with the largest maxima, so that only those are sorted.
    """
    n, vocab = logits.shape
    k, width = min(k, vocab), vocab // BLOCKS
    if width <= k:
        columns = np.broadcast_to(np.arange(vocab), (n, vocab))
    else:
        groups = logits[:, : width * BLOCKS].reshape(n, BLOCKS, width).max(1)
        best = np.argpartition(groups, width - k, axis=1)[:, width - k :]
        columns = (best[:, :, None] + width * np.arange(BLOCKS)).reshape(n, -1)
        if width * BLOCKS < vocab:
            rest = np.arange(width * BLOCKS, vocab)
            columns = np.concatenate([columns, np.broadcast_to(rest, (n, len(rest)))], 1)
    rows = np.arange(n)[:, None]
    found = logits[rows, columns]
    order = np.argsort(-found, axis=1, kind="stable")[:, :k]
    top = found[rows, order[:, :1]]
    weights = logits - top
    total = np.log(np.exp(weights, out=weights).sum(1, keepdims=True))
    values = found[rows, order].astype(np.float64) - top - total
    tokens = columns[rows, order]
    return values, tokens if ids is None else ids[tokens]
