"""Growing a tree with a model that gives probabilities: EAGLE-2's beam search, for draft heads and
draft models alike.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import numpy as np

from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree

# of n rows each, the likeliest first: (log-probabilities [n, k], tokens [n, k])
Guesses = tuple[np.ndarray, np.ndarray]
# (tokens of the beam, the row of the previous call that each came from) -> what comes after each
Step = Callable[[list[int], list[int]], Guesses]

GROUP_COLUMNS = 32  # columns of a group, spread evenly over the vocabulary


def expand(
    root: int, after: Guesses, step: Step, depth: int, top_k: int, floor: float = 0.0
) -> Draft:
    """The tree of all tokens considered, likeliest first; the drafter's probabilities multiply
    along a path.

    `after` is what comes after the root, one row. Each level extends the `top_k` likeliest nodes of
    the level before by `top_k` tokens each, of as many guesses as there are. It ends at `depth`, or
    where no node of a level reaches the probability `floor`.
    """
    first_values, first_tokens = (part[0, :top_k].tolist() for part in after)
    top_k = len(first_tokens)
    # by node; the root is 0
    values = [0.0, *first_values]
    tokens = [root, *first_tokens]
    parents = [-1, *[0] * top_k]
    beam = list(range(1, top_k + 1))
    first = 1  # node of the last level
    levels = 1
    while levels < depth and values[beam[0]] >= log(max(floor, 1e-30)):
        guesses = step([tokens[node] for node in beam], [(node - first) // top_k for node in beam])
        first = len(tokens)
        levels = levels + 1
        for node, more, after_node in zip(
            beam, *(part[:, :top_k].tolist() for part in guesses), strict=True
        ):
            values += [values[node] + value for value in more]
            tokens += after_node
            parents += [node] * top_k
        beam = _likeliest(values, first)[:top_k]
    order = [0, *_likeliest(values, 1)]
    place = dict(zip(order, range(len(order)), strict=True))
    tree = Tree(
        [tokens[node] for node in order], [-1, *(place[parents[node]] for node in order[1:])]
    )
    return Draft(tree, np.exp([values[node] for node in order]), levels=levels)


def _likeliest(values: list[float], first: int) -> list[int]:
    """Nodes from `first` on by falling value, ties to the lower number."""
    return sorted(range(first, len(values)), key=values.__getitem__, reverse=True)


def best_tokens(logits: np.ndarray, k: int) -> Guesses:
    """The k largest of logits [n, vocab], descending; log-probabilities in float64.

    The k largest lie in the k groups of columns with the largest maxima, so that only those are
    sorted.
    """
    n, vocab = logits.shape
    k = min(k, vocab)
    width = vocab // GROUP_COLUMNS
    if width <= k:
        columns = np.broadcast_to(np.arange(vocab), (n, vocab))
    else:
        groups = logits[:, : width * GROUP_COLUMNS].reshape(n, GROUP_COLUMNS, width).max(1)
        best = np.argpartition(groups, width - k, axis=1)[:, width - k :]
        columns = (best[:, :, None] + width * np.arange(GROUP_COLUMNS)).reshape(n, -1)
        if width * GROUP_COLUMNS < vocab:
            rest = np.arange(width * GROUP_COLUMNS, vocab)
            columns = np.concatenate([columns, np.broadcast_to(rest, (n, len(rest)))], 1)
    rows = np.arange(n)[:, None]
    found = logits[rows, columns]
    order = np.argsort(-found, axis=1, kind="stable")[:, :k]
    top = found[rows, order[:, :1]]
    weights = logits - top
    total = np.log(np.exp(weights, out=weights).sum(1, keepdims=True))
    values = found[rows, order].astype(np.float64) - top - total
    return values, columns[rows, order]
