"""The likeliest tokens of a draft head's logits."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.top_k import TopK, top_k_definition


def run(logits: np.ndarray, vocab: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The operator on logits whose padding is larger than they are."""
    n, padded = len(logits), -(-vocab // 16) * 16
    wide = np.full((n, padded), 1e6, np.float32)
    wide[:, :vocab] = logits
    ids, values = np.full((n, k), -1, np.int32), np.full((n, k), np.nan, np.float32)
    compiled(cpu_kernel(TopK(vocab, k)))(wide, ids, values)
    return ids, values


@pytest.mark.parametrize(
    ("vocab", "k"),
    [(1, 1), (7, 7), (16, 3), (64, 16), (65, 16), (100, 16), (1091, 16), (32768, 16)],
)
def test_the_best_columns_and_their_log_probabilities(vocab: int, k: int) -> None:
    logits = 4 * np.random.default_rng(vocab).standard_normal((5, vocab)).astype(np.float32)
    ids, values = run(logits, vocab, k)
    expected_ids, expected = top_k_definition(logits, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(values, expected, rtol=2e-6, atol=2e-6)


def test_ties_go_to_the_lower_column() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(-2, 2, (9, 300)).astype(
        np.float32
    )  # ties within blocks, between them, and all the same
    logits[0], logits[1, 290:] = 0, 5
    ids, values = run(logits, 300, 16)
    expected_ids, expected = top_k_definition(logits, 16)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(values, expected, rtol=2e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0, 1e4])
def test_flat_and_certain_distributions(scale: float) -> None:
    logits = (scale * np.random.default_rng(1).standard_normal((2, 500))).astype(np.float32)
    _, values = run(logits, 500, 4)
    np.testing.assert_allclose(values, top_k_definition(logits, 4)[1], rtol=1e-6, atol=2e-6)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(CompileError, match="top_k of 5 tokens from a vocabulary of 4"):
        TopK(4, 5)
