"""Every sampling number that a person, a file or an API can give means what the definition says, or
is refused by its name.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sampling_definition
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from minicpm_mlc.base.errors import MiniCPMError, SamplingError
from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.request import Request
from minicpm_mlc.runtime_py.sampler import Sampler

DENORMAL = 5e-324
# Where two ways to add up shares may disagree.
CLOSE = 1e-5

logit_lists = st.lists(
    st.integers(-320, 320).map(lambda n: n / 8)
    | st.floats(-1e4, 1e4, width=32)
    | st.sampled_from([-math.inf, -3e38, 3e38, 1e-45, 0.0, -0.0]),
    min_size=1,
    max_size=30,
).filter(lambda logits: max(logits) > -math.inf)
token_lists = st.lists(st.integers(0, 29), max_size=8)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100) | st.sampled_from([0.0, DENORMAL, 1e-40, 1e-30, 0.6, 1.0]),
    top_k=st.integers(0, 35),
    top_p=st.floats(DENORMAL, 1) | st.sampled_from([DENORMAL, 0.5, 0.95, 1 - 2**-53, 1.0]),
    min_p=st.floats(0, 1) | st.sampled_from([0.0, DENORMAL, 1e-40, 1.0]),
    repetition_penalty=st.floats(DENORMAL, 100) | st.sampled_from([DENORMAL, 1.0, 1.1, 100.0]),
    presence_penalty=st.floats(-100, 100) | st.sampled_from([0.0, DENORMAL]),
    frequency_penalty=st.floats(-100, 100) | st.sampled_from([0.0, DENORMAL]),
    seed=st.just(0),
)


def undecided(logits: list[float], p: SamplingParams, *tokens: list[int]) -> bool:
    """Whether the last digits decide what stays."""
    return any(
        sampling_definition.shares(logits, dataclasses.replace(p, **{name: value}), *tokens).keys()
        != sampling_definition.shares(logits, p, *tokens).keys()
        for name, value in (
            ("top_p", max(DENORMAL, p.top_p * (1 - CLOSE))),
            ("top_p", min(1, p.top_p * (1 + CLOSE))),
            ("min_p", p.min_p * (1 - CLOSE)),
            ("min_p", min(1, p.min_p * (1 + CLOSE))),
        )
    )


@given(logit_lists, params, token_lists, token_lists)
@example([1.0, 30.0, 29.0], SamplingParams(temperature=DENORMAL), [], [])
@example([1.0, 30.0, 30.0], SamplingParams(temperature=1e-40, min_p=0.5), [], [])
@example([1.0, 2.0], SamplingParams(repetition_penalty=DENORMAL), [0, 1], [])
@example([10.0, 2.0], SamplingParams(repetition_penalty=1e-38), [0], [])
@example([1.0, 2.0], SamplingParams(top_p=DENORMAL, min_p=DENORMAL), [], [])
@settings(max_examples=600, deadline=None, derandomize=True)
def test_every_number_means_what_the_definition_says(
    logits: list[float], p: SamplingParams, prompt: list[int], answer: list[int]
) -> None:
    logits = np.array(logits, np.float32).tolist()
    prompt, answer = [[i for i in ids if i < len(logits)] for ids in (prompt, answer)]
    assume(not undecided(logits, p, prompt, answer))
    expected = sampling_definition.shares(logits, p, prompt, answer)
    sampler = Sampler(p, len(logits), prompt)
    for token_id in answer:
        sampler.accept(token_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, probs = sampler.probabilities(np.array(logits, np.float32))
        drawn = sampler.sample(np.array(logits, np.float32))
    found = dict(zip(ids.tolist(), probs.tolist(), strict=True))
    for i in found.keys() | expected.keys():  # of equal shares either may stay, and none is nothing
        assert found.get(i, 0) == pytest.approx(expected.get(i, 0), rel=1e-6, abs=1e-12)
    assert sum(found.values()) == pytest.approx(1) and expected[drawn] > 0


def test_the_order_is_penalties_temperature_top_k_top_p_min_p() -> None:
    """A case in which each exchange of two neighbouring steps would show."""
    logits = [4.0, 3.5, 3.0, 2.0, 1.0]
    p = SamplingParams(2.0, 4, 0.7, 0.6, 2.0, seed=0)
    shares = sampling_definition.shares(logits, p, [0])
    # penalties first: 2.0, 3.5, 3.0, 2.0, 1.0; top-k drops the last; halved by the temperature the
    # shares are 0.17, 0.36, 0.28, 0.17, so that top-p keeps 1, 2, 0 and min-p 1 and 2.
    assert list(shares) == [1, 2]
    ids, probs = Sampler(p, 5, [0]).probabilities(np.array(logits, np.float32))
    assert ids.tolist() == [1, 2]
    np.testing.assert_allclose(probs, list(shares.values()), rtol=1e-9)


def test_the_order_is_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as steps

    rng = np.random.default_rng(5)
    for _ in range(40):
        logits = (rng.standard_normal(60) * 4).astype(np.float32)
        prompt = rng.integers(0, 60, 12)
        p = SamplingParams(
            *(float(rng.choice([0.3, 0.7, 1.5])), int(rng.choice([7, 25]))),
            *(float(rng.choice([0.5, 0.9])), float(rng.choice([0.02, 0.2])), 1.3),
        )
        pipeline = steps.LogitsProcessorList(
            [
                steps.RepetitionPenaltyLogitsProcessor(p.repetition_penalty),
                steps.TemperatureLogitsWarper(p.temperature),
                steps.TopKLogitsWarper(p.top_k),
                steps.TopPLogitsWarper(p.top_p),
                steps.MinPLogitsWarper(p.min_p),
            ]
        )
        expected = pipeline(torch.tensor(prompt)[None], torch.tensor(logits)[None])[0].softmax(-1)
        ids, probs = Sampler(p, 60, prompt.tolist()).probabilities(logits)
        assert set(ids.tolist()) == set(expected.nonzero().flatten().tolist())
        np.testing.assert_allclose(probs, expected.numpy()[ids], rtol=1e-5)


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 3).map(lambda n: 10 ** (400 * n))
    | st.just(10**5000)
    | st.floats()
    | st.complex_numbers()
    | st.fractions()
    | st.just(Fraction(1, 10**400))
    | st.decimals()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.floats(width=32).map(np.float32)
    | st.complex_numbers(width=64).map(np.complex64)
    | st.integers(-5, 5).map(np.int64)
    | st.sampled_from([np.bool_(True), np.array(0.5), np.array([1, 2]), {}, object()])
)
NAMES = [field.name for field in dataclasses.fields(SamplingParams)]


@given(st.sampled_from(NAMES), anything)
@settings(max_examples=1500, deadline=None, derandomize=True)
def test_rob_23_any_value_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    try:
        p = SamplingParams(**{"seed": 0, name: value})
    except SamplingError as error:
        assert str(error).startswith(f"{name} is ") and len(str(error)) < 400
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = Sampler(p, 4, [1])
        sampler.accept(2)
        assert sampler.sample(np.array([0, 5, -3, 2], np.float32)) in range(4)
        assert sampler.probabilities(np.array([0, 5, -3, 2], np.float32))[1].sum() == pytest.approx(
            1
        )


OTHERS = ["max_tokens", "stop", "speculate", "tree_size", "draft_depth", "draft_top_k"]


@given(st.sampled_from([*NAMES, *OTHERS]), anything)
@settings(max_examples=800, deadline=None, derandomize=True)
def test_rob_23_any_option_of_a_call_is_taken_or_refused(name: str, value: Any) -> None:
    try:
        Request.of([1], {name: value}, SamplingParams())
    except MiniCPMError as error:
        assert name in str(error) and len(str(error)) < 500
