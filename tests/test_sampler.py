from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.sampler import Sampler

logit_lists = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=40)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.6, 1.0, 2.5]),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([0.05, 0.31, 0.5, 0.83, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.27, 1.0]),
    seed=st.just(0),
)


def slow_probabilities(logits: list[float], p: SamplingParams) -> dict[int, float]:
    """The definition, one token at a time; refuses cases where rounding decides."""
    rest = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if p.top_k:
        rest = rest[: p.top_k]
    weights = {i: math.exp((logits[i] - max(logits)) / p.temperature) for i in rest}
    total = sum(weights.values())
    kept, before = {}, 0.0
    for i in rest:
        share = weights[i] / total
        assume(abs(before - p.top_p) > 1e-9)
        assume(p.min_p == 1 or abs(weights[i] - p.min_p) > 1e-9)
        if (p.top_p == 1 or before < p.top_p) and weights[i] >= p.min_p:
            kept[i] = share
        before += share
    return {i: share / sum(kept.values()) for i, share in kept.items()}


@given(logit_lists, params)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_probabilities_are_those_of_the_definition(logits: list[float], p: SamplingParams) -> None:
    expected = slow_probabilities(logits, p)
    ids, probs = Sampler(p, len(logits)).probabilities(np.array(logits, np.float32))
    assert set(ids.tolist()) == set(expected)
    np.testing.assert_allclose(probs, [expected[i] for i in ids.tolist()], rtol=1e-9)
    assert probs.sum() == pytest.approx(1)


@given(
    logit_lists,
    st.lists(st.integers(0, 39), max_size=8),
    st.lists(st.integers(0, 39), max_size=8),
    st.sampled_from([0.5, 1.0, 1.3]),
    st.sampled_from([0.0, 0.75, -0.5]),
    st.sampled_from([0.0, 0.25]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_penalties_are_those_of_the_definition(
    logits: list[float],
    prompt: list[int],
    answer: list[int],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    n = len(logits)
    prompt, answer = [i % n for i in prompt], [i % n for i in answer]
    expected = []
    for i, logit in enumerate(logits):
        if i in prompt or i in answer:
            logit = logit * repetition if logit < 0 else logit / repetition
        expected.append(logit - presence * (i in answer) - frequency * answer.count(i))
    weights = np.exp(np.array(expected) - max(expected))
    sampling = SamplingParams(1.0, 0, 1.0, 0.0, repetition, presence, frequency, seed=0)
    sampler = Sampler(sampling, n, prompt)
    for token_id in answer:
        sampler.accept(token_id)
    logits32 = np.array(logits, np.float32)
    ids, probs = sampler.probabilities(logits32)
    assert ids.tolist() == list(range(n))
    np.testing.assert_allclose(probs, weights / weights.sum(), rtol=1e-9)
    assert logits32.tolist() == logits  # the caller's array is left alone


def test_greedy_takes_the_largest_logit_and_the_lower_id_of_equals() -> None:
    sampler = Sampler(SamplingParams(temperature=0), 4)
    assert sampler.sample(np.array([0, 3, 3, 1], np.float32)) == 1


def test_greedy_heeds_the_penalties() -> None:
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=2), 3)
    logits = np.array([0, 3, 2], np.float32)
    assert sampler.sample(logits) == 1
    sampler.accept(1)
    assert sampler.sample(logits) == 2


def test_top_k_keeps_exactly_k_and_of_equals_the_lower_ids() -> None:
    ids, _ = Sampler(SamplingParams(top_k=3, top_p=1.0), 6).probabilities(
        np.array([1, 5, 1, 1, 5, 1], np.float32)
    )
    assert ids.tolist() == [0, 1, 4]


def test_top_p_over_a_whole_vocabulary_sums_the_whole_tail() -> None:
    # One token has 0.3 of the mass, the rest is spread over 99,999 others: the nucleus of 0.5 needs
    # 2/7 of them.
    n = 100_000
    logits = np.zeros(n, np.float32)
    logits[7] = math.log(0.3 / 0.7 * (n - 1))
    ids, probs = Sampler(SamplingParams(temperature=1, top_p=0.5), n).probabilities(logits)
    assert ids[0] == 7 and len(ids) == pytest.approx(1 + (n - 1) * 2 / 7, abs=2)
    assert probs[0] == pytest.approx(0.3 / 0.5, rel=1e-3)


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
def test_top_p_of_a_large_vocabulary_is_that_of_the_whole_sorted_distribution(
    spread: float,
) -> None:
    logits = (np.random.default_rng(0).standard_normal(20_000) * spread).astype(np.float32)
    logits[100:200] = logits[:100]  # ties
    probs = np.exp(logits.astype(np.float64) - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    expected = order[np.cumsum(probs[order]) - probs[order] < 0.9]
    ids, _ = Sampler(SamplingParams(temperature=1, top_p=0.9), len(logits)).probabilities(logits)
    assert ids.tolist() == expected.tolist()


class Fixed:
    """Stands for the random numbers."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize(
    ("value", "drawn"), [(0.0, 1), (0.2499, 1), (0.25, 3), (0.75, 5), (0.9999, 5)]
)
def test_each_token_owns_its_stretch_of_the_random_numbers(value: float, drawn: int) -> None:
    sampler = Sampler(SamplingParams(temperature=1, top_p=1), 6)
    sampler._random = Fixed(value)  # type: ignore[assignment]
    zero = -np.inf  # tokens 0 and 2 have no stretch, so the borders never draw them
    assert sampler.sample(np.array([zero, 0, zero, 0, 0, 0], np.float32)) == drawn


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingParams(temperature=1, top_p=1, seed=3), 4)
    draws = [sampler.sample(logits) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(draws) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def draw(seed: int | None) -> list[int]:
        logits = np.linspace(0, 1, 50, dtype=np.float32)
        sampler = Sampler(SamplingParams(temperature=1, top_p=1, seed=seed), 50)
        return [sampler.sample(logits) for _ in range(20)]

    assert draw(5) == draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = np.array([1, 30, 29], np.float32)
    ids, probs = Sampler(SamplingParams(temperature=1e-6, top_p=1.0), 3).probabilities(logits)
    assert probs[ids == 1] == pytest.approx(1)


def test_minus_infinity_forbids_a_token() -> None:
    logits = np.array([0, -np.inf, 0], np.float32)
    ids, probs = Sampler(SamplingParams(temperature=1, top_p=1), 3).probabilities(logits)
    assert dict(zip(ids.tolist(), probs.tolist(), strict=True))[1] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_logits_are_refused(bad: float) -> None:
    for temperature in (0, 1):
        with pytest.raises(SamplingError, match="not a finite number"):
            Sampler(SamplingParams(temperature=temperature), 3).sample(
                np.array([0, bad, 1], np.float32)
            )


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("temperature", -0.1, r"\[0, 100\]"),
        ("temperature", math.nan, r"\[0, 100\]"),
        ("temperature", "hot", r"\[0, 100\]"),
        ("temperature", True, r"\[0, 100\]"),
        ("top_p", 0, r"\(0, 1\]"),
        ("top_p", 1.01, r"\(0, 1\]"),
        ("min_p", -1, r"\[0, 1\]"),
        ("repetition_penalty", 0, r"\(0, 100\]"),
        ("presence_penalty", math.inf, r"\[-100, 100\]"),
        ("frequency_penalty", None, r"\[-100, 100\]"),
        ("top_k", -1, "whole number, 0 or more"),
        ("top_k", 2.5, "whole number, 0 or more"),
        ("seed", -1, "whole number, 0 or more"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object, range_: str) -> None:
    with pytest.raises(SamplingError, match=f"{name} is {value!r}; it must be .*{range_}"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
