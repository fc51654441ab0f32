"""choose_nodes beside what the operator grid asks of it."""

from __future__ import annotations

import numpy as np
from op_cases import compiled, cpu_kernel

from minicpm_mlc.ops.choose_nodes import ChooseNodes
from minicpm_mlc.ops.formats.draft_tree import NODE, REACH, TOKEN


def chosen(values: np.ndarray, tree: np.ndarray, slots: list[int], masks: list[int]) -> list:
    """What comes out for a level behind 10 tokens; the head's id i is token 100 + i."""
    rows, guesses = values.shape
    n, hidden = tree.shape[2], np.repeat(np.arange(rows, dtype=np.float32), 16).reshape(rows, 16)
    ids = np.tile(np.arange(guesses, dtype=np.int32), (rows, 1))
    places = np.array([20] * rows, np.int32), np.array(slots, np.int32), np.array([10], np.int32)
    ancestors = np.array(masks, "<u8").view("<i4").reshape(-1, 2)
    empty = [np.zeros(n, np.int32) for _ in range(3)]
    out = [empty[0], np.zeros((n, 16), np.float32), *empty[1:], np.zeros((n, 2), np.int32)]
    vocabulary = np.arange(100, 110, dtype=np.int32)
    kernel = compiled(cpu_kernel(ChooseNodes(10, 16, guesses)))
    kernel(ids, values, hidden, *places, ancestors, vocabulary, tree, *out)
    tokens, origin, positions, own, paths = out
    return [
        tokens.tolist(),
        origin[:, 0].tolist(),
        positions.tolist(),
        own.tolist(),
        paths.view("<u8")[:, 0].tolist(),
    ]


def test_the_likeliest_paths_go_on():
    tree = np.zeros((1 + 2 * 2, 3, 2), np.int32)
    after = chosen(np.array([[-1, -2, -9]], np.float32), tree, [9], [0])
    assert after == [[100, 101], [0, 0], [21, 21], [10, 11], [1, 2]], "the root's two guesses"
    assert tree[:3, NODE, 0].tolist() == [0, 1, 2] and tree[0, TOKEN].tolist() == [100, 101]
    # -1 - 4, -1 - 5 beside -2 - 0.5, -2 - 3: of the two of -5 the earlier
    after = chosen(np.array([[-4, -5, 0], [-0.5, -3, 0]], np.float32), tree, [10, 11], [1, 2])
    assert after == [[100, 100], [1, 0], [21, 21], [12, 13], [2 | 4, 1 | 8]]
    assert tree[1:3, REACH].view(np.float32).tolist() == [[-5, -6], [-2.5, -5]]
    assert tree[3:, NODE, 0].tolist() == [5, 3]


def test_numbers_that_are_none_choose_nodes_that_are_there():
    tree = np.zeros((1, 3, 2), np.int32)
    tokens, origin, *_ = chosen(np.full((1, 2), np.nan, np.float32), tree, [9], [0])
    assert tokens == [100, 101] and origin == [0, 0]
