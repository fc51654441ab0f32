"""Several sequences on one engine's pages: each is computed as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import NARROW

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import ContextError
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.generation import Generation, Limits
from minicpm_mlc.runtime_py.generation import Ids as ReadIds
from minicpm_mlc.runtime_py.request import Request
from minicpm_mlc.runtime_py.slots import Slot
from minicpm_mlc.runtime_py.speculative.policy import Policy

PAGE = 64
PAGES = 12
STEPS = 24
PROMPTS = [[(31 * i) % 300 for i in range(1, n)] for n in (200, 245)]  # one crosses dense_len


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Path:
    return tiny_bundle("MiniCPM4.1-8B", "w4", sparse=NARROW).path


@pytest.fixture(params=["dense", "sparse", "auto"])
def engine(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    options: dict[str, Any] = {"attention": request.param, "threads": 1}
    with Engine(bundle, context=PAGES * PAGE, **options) as opened:
        yield opened


def prefill(model: CachedModel, ids: list[int]) -> np.ndarray:
    """Logits float32 [vocab] after the prompt."""
    return [rows for _, rows in model.prefill(ids, PAGE)][-1][-1]


def greedy_alone(engine: Engine, ids: list[int]) -> list[np.ndarray]:
    """The logits of a prompt and of STEPS greedy tokens after it, on the engine's own sequence."""
    engine.truncate(0)
    logits = [prefill(engine.model, ids).copy()]
    for _ in range(STEPS):
        logits.append(engine.decode(int(logits[-1].argmax())).copy())
    return logits


def test_two_sequences_that_decode_in_turns_have_the_logits_of_each_alone(engine):
    alone = [greedy_alone(engine, ids) for ids in PROMPTS]
    engine.truncate(0)
    models = [engine.model, engine.open_sequence()]
    together = [[prefill(model, ids).copy()] for model, ids in zip(models, PROMPTS, strict=True)]
    for _ in range(STEPS):
        for model, logits in zip(models, together, strict=True):
            logits.append(model.decode(int(logits[-1].argmax())).copy())
    np.testing.assert_array_equal(together, alone)
    tables = [set(model.sequence.page_table.tolist()) for model in models]
    assert all(tables) and not tables[0] & tables[1]
    read = [model.selected for model in models]
    sparse = [engine.gears.sparse(len(model)) for model in models]
    assert [bool(blocks) for blocks in read] == sparse
    models[1].free()


def test_verified_trees_of_two_sequences_do_not_meet(engine):
    ids, other = PROMPTS
    tree = [5, 6, 7, 8], [-1, 0, 0, 1]
    engine.truncate(0)
    prefill(engine.model, ids)
    alone, _ = engine.model.verify(*tree)
    alone = alone.copy()
    second = engine.open_sequence()
    prefill(second, other)
    together, _ = engine.model.verify(*tree)
    together = together.copy()
    second.verify([9, 10, 11], [-1, 0, 1])
    second.commit([0, 1])
    engine.model.commit([0, 1, 3])
    np.testing.assert_array_equal(together, alone)
    assert engine.cached_tokens == [*ids, 5, 6, 8]
    assert second.sequence.tokens == [*other, 9, 10]
    after = second.decode(12).copy()
    second.free()
    prefill(second, [*other, 9, 10])
    np.testing.assert_array_equal(second.decode(12), after)
    second.free()


def test_a_freed_sequence_gives_its_pages_back(engine):
    engine.truncate(0)
    pages = engine.model.cache.pages
    assert pages.free_pages == PAGES
    prefill(engine.model, PROMPTS[0])
    second = engine.open_sequence()
    prefill(second, PROMPTS[1])
    assert pages.free_pages == PAGES - 8
    third = engine.open_sequence(context=5 * PAGE)
    with pytest.raises(ContextError, match=f"all {PAGES} pages .* are in use"):
        prefill(third, [*PROMPTS[1], *range(5 * PAGE - len(PROMPTS[1]))])
    third.free()
    with pytest.raises(ContextError, match="don't fit the context of 320"):
        third.sequence.reserve(5 * PAGE + 1)
    assert pages.free_pages == PAGES - 8
    second.free()
    assert pages.free_pages == PAGES - 4 and len(second) == 0
    prefill(second, PROMPTS[1])  # it can be filled again
    second.free()


def test_a_fork_shares_full_pages_and_goes_its_own_way(engine):
    prompt, other = PROMPTS[0], [*PROMPTS[0][: 3 * PAGE], *range(7, 20)]
    engine.truncate(0)
    alone = prefill(engine.model, other).copy()
    engine.truncate(0)
    prefill(engine.model, prompt)
    expected = engine.decode(5).copy()
    engine.truncate(len(prompt))
    fork = engine.model.fork()
    assert fork.sequence.tokens == prompt[: 3 * PAGE]
    np.testing.assert_array_equal(prefill(fork, other[3 * PAGE :]), alone)
    np.testing.assert_array_equal(engine.decode(5), expected)
    assert engine.model.cache.pages.free_pages == PAGES - 5  # three of both, one of each
    fork.free()
    assert engine.model.cache.pages.free_pages == PAGES - 4


def generation(engine: Engine, ids: list[int], seed: int) -> Generation:
    options = {"max_tokens": STEPS, "temperature": 1.0, "top_p": 0.9, "seed": seed}
    request = Request.of(ids, options, engine.defaults)
    limits = Limits(engine.vocab_size, frozenset(), engine.prefill_chunk)
    return Generation(request, engine.context, PAGE, limits, ReadIds())


def tokens(one: Generation, model: CachedModel) -> Iterator[int]:
    one.start(Slot(model, {}, Policy([])))
    while True:
        yield from map(int, one.draw())  # type: ignore[call-overload]
        if one.ended:
            break
        one.decode()
    one.close()


def test_two_generations_in_turns_say_what_each_says_alone(engine):
    alone, reads = [], []
    for seed, ids in enumerate(PROMPTS):
        engine.truncate(0)
        one = generation(engine, ids, seed)
        alone.append(list(tokens(one, engine.model)))
        reads.append(one.block_reads)
    engine.truncate(0)
    models = [engine.model, engine.open_sequence()]
    both = [generation(engine, ids, seed) for seed, ids in enumerate(PROMPTS)]
    turns = zip(*map(tokens, both, models), strict=True)
    assert [list(said) for said in zip(*turns, strict=True)] == alone
    np.testing.assert_array_equal([one.block_reads for one in both], reads)
    for one, model, ids in zip(both, models, PROMPTS, strict=True):
        assert one.stats.generated_tokens == STEPS and one.stats.finish_reason == "length"
        assert one.stats.context_used == len(model) == len(ids) + STEPS - 1
    longest = both[1]  # of more blocks than a row reads
    assert longest.block_reads.any() == (longest.stats.attention == "sparse")
    models[1].free()
