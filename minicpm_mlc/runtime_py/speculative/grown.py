"""The draft that a head's tree in the making is."""

from __future__ import annotations

import numpy as np

from minicpm_mlc.runtime_py.draft_loop import NODE, REACH, TOKEN, goes_on, levels_of
from minicpm_mlc.runtime_py.speculative.tree import FREE_ROWS, Draft, Tree


def draft_of(
    root: int, tree: np.ndarray, floor: float, read_tokens: int = 0, read_seconds: float = 0.0
) -> Draft:
    """All guesses, the likeliest first, ties to the earlier; the head's probabilities multiply
    along a path. It is EAGLE-2's beam search, as `expand` does it for draft models.

    `tree` int32 [s, 3, n] as it was grown (draft_loop.py); what lies behind the first level of
    which no node reaches the probability `floor` is left out. `read_tokens` were read before, which
    took `read_seconds`.
    """
    drafted, levels, width = levels_of(tree), 1, tree.shape[2]
    while levels < drafted and goes_on(tree, levels, floor):
        levels += 1
    tree = tree[: 1 + (levels - 1) * width]
    reach = tree[:, REACH].view(np.float32).ravel()
    order = np.argsort(-reach, kind="stable")
    place = np.zeros(len(order) + 1, np.int64)  # of each node; the root keeps 0
    place[order + 1] = np.arange(1, len(order) + 1)
    tokens, above = tree[:, TOKEN].ravel()[order], tree[order // width, NODE, 0]
    grown = Tree([root, *tokens.tolist()], [-1, *place[above].tolist()])
    chances = np.exp(np.concatenate([[0.0], reach[order]]))
    # many rows were read but for the last one, which is a level beside those of the tree
    drafted += read_tokens > FREE_ROWS
    return Draft(grown, chances, 0, drafted, read_tokens, read_seconds)
