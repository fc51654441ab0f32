"""The demo with its head and with a draft bundle says what it says without: text, cache, reason to
end, and logits after.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import speculation_identity as identity

from minicpm_mlc import Engine

SKILLS = ("add, thinking", "recall, 256 tokens", "project questions")
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "top_p": 0.95, "seed": 1},
    {
        "temperature": 1.3,
        "top_k": 40,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "seed": 2,
    },
    {"temperature": 0, "stop": "\n", "presence_penalty": 0.5},
]
SHAPES: dict[str, list[dict[str, Any]]] = {
    "eagle": [{"tree_size": 60, "draft_depth": 6, "draft_top_k": 8}, {"tree_size": 7}, {}],
    "ngram": [{"tree_size": 12}, {}],
    "draft": [{"tree_size": 40, "draft_depth": 5, "draft_top_k": 4}, {"draft_depth": 6}],
    "auto": [{"tree_size": 16}, {}],
}


@pytest.fixture(scope="module", params=["dense", "sparse", "crossing"])
def engine(demo_bundle: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """It drafts for itself: sampled tokens are not always the guessed ones."""
    attention = "auto" if request.param == "crossing" else request.param
    with Engine(
        demo_bundle, context=1024, threads=1, attention=attention, draft=demo_bundle
    ) as opened:
        yield opened


def prompts(engine: Engine) -> Iterator[list[int]]:
    """Short prompts; where the gear shifts by itself, longer ones that end just before."""
    for skill in SKILLS:
        rng = random.Random(skill)
        ids = engine.tokenize(identity.prompt_of(identity.SKILLS[skill](rng)))
        filler = engine.tokenize(identity.data.document(rng, [], 60), bos=False)
        yield (
            identity.fitted(ids, engine.gears.dense_len - 4, filler)
            if engine.gears.attention == "auto"
            else ids
        )


def answer(engine: Engine, ids: list[int], **options: Any) -> tuple[Any, np.ndarray]:
    """(what must be the same; logits of one plain step after it, which show what the cache
    holds).
    """
    text = engine.generate(ids, max_tokens=40, **options)
    stats, cached = engine.stats, engine.cached_tokens
    logits = engine.decode(ids[0]).copy()
    engine.truncate(len(cached))
    return (
        text,
        cached,
        stats.finish_reason,
        stats.generated_tokens,
        stats.decode_steps,
        stats.context_used,
    ), logits


@pytest.mark.parametrize("drafter", SHAPES)
def test_a_real_model_says_the_same_with_speculation(engine: Engine, drafter: str) -> None:
    """With int8 activations to the bit; else only rounding may differ."""
    limit, crossed, accepted = identity.rounding(engine), 0, 0
    for ids in prompts(engine):
        for sampling in SAMPLINGS:
            answer(engine, ids, speculate="off", **sampling)
            plain, after_plain = answer(engine, ids, speculate="off", **sampling)
            for shape in SHAPES[drafter]:
                other, after = answer(engine, ids, speculate=drafter, **shape, **sampling)
                assert other == plain, (sampling, shape)
                assert np.abs(after - after_plain).max() <= limit, (sampling, shape)
                accepted += engine.stats.speculation.accepted
            crossed += len(ids) < engine.gears.dense_len <= len(plain[1])
    assert accepted > 10 or drafter == "auto"
    assert crossed > 6 or engine.gears.attention != "auto"
