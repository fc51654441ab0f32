"""Token trees, how they are grown from a model's probabilities, and how they are looked up in the
text.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm_mlc.runtime_py.speculative.expand import Guesses, best_tokens, expand
from minicpm_mlc.runtime_py.speculative.ngram import (
    LONGEST_SUFFIX,
    NgramDrafter,
    continuation,
    longest_suffix,
    merge,
)
from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree
from minicpm_mlc.runtime_py.token_tree import tree_shape


def test_the_worked_example_of_the_specification() -> None:
    levels = iter([[[-0.2, -1.8]], [[-0.3, -1.5], [-0.4, -1.2]], [[-0.1, -2.5], [-0.5, -1.0]]])
    came_from: list[list[int]] = []

    def guesses() -> Guesses:
        values = np.array(next(levels))
        return values, np.broadcast_to([7, 8], values.shape)

    def step(tokens: list[int], rows: list[int]) -> Guesses:
        came_from.append(rows)
        return guesses()

    pool = expand(5, guesses(), step, depth=3, top_k=2)
    expected = sorted([-0.2, -1.8, -0.5, -1.7, -2.2, -3.0, -0.6, -3.0, -2.2, -2.7], reverse=True)
    np.testing.assert_allclose(np.log(pool.reach[1:]), expected)
    assert came_from == [[0, 0], [0, 0]]
    chosen = pool.likeliest(6).tree
    assert list(chosen.parents) == [-1, 0, 1, 2, 1, 0]
    assert chosen.depths.tolist() == [0, 1, 2, 3, 2, 1]
    assert tree_shape(chosen.parents)[1] == [1, 3, 7, 15, 19, 33]


@pytest.mark.parametrize(("vocab", "k"), [(3, 5), (5, 3), (64, 2), (1000, 10), (4099, 16)])
def test_the_best_tokens_are_those_of_a_full_sort(vocab: int, k: int) -> None:
    logits = np.random.default_rng(vocab).standard_normal((7, vocab)).astype(np.float32)
    values, ids = best_tokens(logits, k)
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(values, np.take_along_axis(log_probs, order, 1), atol=1e-6)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
def test_a_grown_tree_is_what_its_model_says(depth: int, top_k: int, vocab: int, seed: int) -> None:
    def logits_after(path: list[int]) -> np.ndarray:
        return np.random.default_rng([seed, *path]).standard_normal(vocab).astype(np.float32)

    paths: list[list[int]] = [[]]

    def step(tokens: list[int], rows: list[int]) -> Guesses:
        nonlocal paths
        paths = [[*paths[row], token] for row, token in zip(rows, tokens, strict=True)]
        return best_tokens(
            np.stack([logits_after(path) for path in paths]), 16
        )  # more than are wanted, as a head gives

    draft = expand(99, best_tokens(logits_after([])[None], 16), step, depth, top_k)
    k = min(top_k, vocab)
    assert len(draft.tree) == 1 + k + (depth - 1) * k * k
    seen = {0: []}
    for node in range(1, len(draft.tree)):
        parent, token = draft.tree.parents[node], draft.tree.token_ids[node]
        seen[node] = [*seen[parent], token]
        logits = logits_after(seen[parent]).astype(np.float64)
        chance = draft.reach[parent] * np.exp(logits[token]) / np.exp(logits).sum()
        np.testing.assert_allclose(draft.reach[node], chance, rtol=1e-5)
    assert len(draft.tree.children) == len(draft.tree) - 1  # no token twice after a node
    assert (np.diff(draft.reach) <= 0).all()


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20))
def test_a_cut_keeps_the_likeliest_nodes_with_all_above_them(
    seed: int, nodes: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    parents = [-1, *(int(rng.integers(node)) for node in range(1, nodes))]
    reach = np.ones(nodes)
    for node in range(1, nodes):
        reach[node] = reach[parents[node]] * rng.choice([1.0, 0.5])
    draft = Draft(Tree(list(range(nodes)), parents), reach)
    cut = draft.likeliest(size)
    assert len(cut.tree) == min(size, nodes) and cut.tree.parents[0] == -1
    for node in range(1, len(cut.tree)):
        assert parents[cut.tree.token_ids[node]] == cut.tree.token_ids[cut.tree.parents[node]]
    assert sorted(cut.reach, reverse=True) == sorted(reach, reverse=True)[:size]


def test_the_longest_repeated_suffix_is_found() -> None:
    history = np.array([5, 1, 2, 3, 9, 1, 2, 3, 7, 2, 3], np.int32)
    ends, length = longest_suffix(history)
    assert (ends.tolist(), length) == ([3, 7], 2)
    assert longest_suffix(np.array([1, 2, 3], np.int32))[1] == 0
    assert longest_suffix(np.tile(np.arange(12, dtype=np.int32), 2))[1] == LONGEST_SUFFIX


def test_a_text_that_runs_out_is_taken_to_repeat() -> None:
    history = np.array([9, 1, 2, 1, 2], np.int32)
    assert continuation(history, 2, 5) == [1, 2, 1, 2, 1]
    assert continuation(history, 0, 3) == [1, 2, 1]


def test_guesses_merge_into_one_tree() -> None:
    draft = merge(0, [[1, 2, 3], [1, 2, 4], [1, 5, 3], [6, 2, 3]])
    assert draft.tree.token_ids == [0, 1, 2, 3, 4, 5, 3, 6, 2, 3]
    assert draft.tree.parents == [-1, 0, 1, 2, 2, 1, 5, 0, 7, 8]
    np.testing.assert_allclose(draft.reach * 4, [4, 3, 2, 1, 1, 1, 1, 1, 1, 1])


def test_a_lookup_drafts_what_followed_before() -> None:
    history = np.array([4, 1, 2, 3, 8, 4, 1, 2, 3, 9, 4], np.int32)
    draft = NgramDrafter().draft(history, depth=4, top_k=2)
    assert draft is not None
    assert draft.tree.token_ids == [4, 1, 2, 3, 9, 8]  # the latest place first
    assert NgramDrafter().draft(np.array([1, 2, 3], np.int32), 4, 2) is None
