"""The two rules that bench/acceptance_rules.py compares, where their answers are known."""

from __future__ import annotations

import acceptance_rules as rules
import numpy as np
import pytest


@pytest.fixture
def many_draws(monkeypatch: pytest.MonkeyPatch) -> np.random.Generator:
    monkeypatch.setattr(rules, "DRAWS", 20_000)
    return np.random.default_rng(0)


def test_one_drawn_guess_is_kept_as_often_as_the_distributions_overlap(many_draws) -> None:
    p, q = many_draws.dirichlet(np.ones(6)), many_draws.dirichlet(np.ones(6))
    p *= 0.8  # the rest of the base's distribution is elsewhere
    assert rules.kept_by_rejection(p, q, many_draws)[0] == pytest.approx(
        np.minimum(p, q).sum(), abs=0.01
    )


def test_two_drawn_guesses_are_kept_as_by_hand(many_draws) -> None:
    """Both orders: the first is kept by min(1, p/q), else p is what it has beyond q and the second
    is certain.
    """
    p, q = np.array([0.1, 0.5]), np.array([0.7, 0.3])
    first_a = 0.7 * (
        0.1 / 0.7 + (1 - 0.1 / 0.7) * (0.2 / 0.6)
    )  # then 0.2 beyond q, and 0.4 elsewhere
    first_b = 0.3  # 0.5 / 0.3 is more than 1
    assert rules.kept_by_rejection(p, q, many_draws)[1] == pytest.approx(
        first_a + first_b, abs=0.01
    )


def test_of_all_tokens_one_is_kept(many_draws) -> None:
    p, q = many_draws.dirichlet(np.ones(8)), many_draws.dirichlet(np.ones(8))
    kept = rules.kept_by_rejection(p, q, many_draws)
    assert kept[-1] == pytest.approx(1) and (np.diff(kept) > 0).all()


def test_a_head_that_is_the_base_is_always_kept(many_draws) -> None:
    p = many_draws.dirichlet(np.ones(5))
    np.testing.assert_allclose(rules.kept_by_rejection(p, p, many_draws), 1)
