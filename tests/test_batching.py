"""Requests at once on a compiled model: each says what it says alone, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import NARROW

from minicpm_mlc import Engine
from minicpm_mlc.runtime_py.cached_model import CachedModel, decode_together
from minicpm_mlc.runtime_py.draft_model import DraftModel
from minicpm_mlc.runtime_py.generation import Ids

PAGE = 64
LENGTHS = (1, 63, 64, 65, 130, 200, 255, 300)
PROMPTS = [[(31 * i + 7 * n) % 300 for i in range(1, n + 1)] for n in LENGTHS]


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Path:
    return tiny_bundle("MiniCPM4.1-8B", "w4", sparse=NARROW).path


@pytest.fixture
def engine(bundle: Path) -> Iterator[Engine]:
    with Engine(bundle, context=1024, threads=1, parallel=8) as opened:
        if opened.manifest.activations != "int8":
            pytest.skip("exact activations are summed in another order from 4 rows on")
        opened.eos_token_ids = frozenset()
        yield opened


def filled(engine: Engine, ids: list[int]) -> CachedModel:
    model = engine.open_sequence()
    list(model.prefill(ids, 2048))
    return model


@pytest.mark.parametrize("count", [2, 3, 8])
def test_rows_of_one_call_are_those_of_calls_of_their_own(engine, count: int) -> None:
    for gear in (False, True):
        prompts = [ids for ids in PROMPTS if engine.gears.sparse(len(ids) + 1) == gear][:count]
        alone, together = [], [filled(engine, ids) for ids in prompts]
        for ids in prompts:
            model = filled(engine, ids)
            alone.append((model.decode(9).copy(), [blocks.copy() for blocks in model.selected]))
            model.free()
        rows = decode_together(together, [9] * len(prompts))
        for (logits, selected), row, model in zip(alone, rows, together, strict=True):
            np.testing.assert_array_equal(row, logits)
            np.testing.assert_array_equal(model.selected, selected)
            model.free()


def test_keys_are_the_same_whichever_call_computed_them(engine) -> None:
    ids = PROMPTS[5]
    whole = filled(engine, ids)
    expected = whole.decode(5).copy()
    chunks, decoded = engine.open_sequence(), filled(engine, ids[:100])
    for start, end in ((0, 1), (1, 3), (3, 120), (120, len(ids))):
        chunks.prefill_chunk(ids[start:end], sparse=False)
    for token in ids[100:]:
        decoded.decode(token)
    np.testing.assert_array_equal(chunks.decode(5), expected)
    np.testing.assert_array_equal(decoded.decode(5), expected)
    for each in (whole, chunks, decoded):
        each.free()


def options(n: int) -> dict[str, Any]:
    """Of every kind of sampling."""
    return [
        {"temperature": 0},
        {"temperature": 1.0, "seed": n, "top_p": 0.9},
        {"temperature": 0.8, "seed": n, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
        {"temperature": 1.5, "seed": n, "top_k": 40, "min_p": 0.02},
    ][n % 4]


def say(engine: Engine, numbers: list[int], max_tokens: int = 24) -> list[list[object]]:
    """What the requests of these numbers say when they come at once."""
    heard: list[list[object]] = [[] for _ in numbers]
    tasks = []
    for n, hear in zip(numbers, heard, strict=True):
        request = engine.request(PROMPTS[n], {"max_tokens": max_tokens, **options(n)})
        tasks.append(engine.submit(engine.generation(request, Ids()), hear.append))
    engine.until(lambda: all(task.over for task in tasks))
    return [[event for event in hear if isinstance(event, int)] for hear in heard]


@pytest.fixture(scope="module")
def lone(bundle: Path) -> list[list[object]]:
    """What each request says on an engine of its own."""
    said = []
    for n in range(len(PROMPTS)):
        with Engine(bundle, context=1024, threads=1) as opened:
            opened.eos_token_ids = frozenset()
            said += say(opened, [n])
    return said


@pytest.mark.parametrize("count", [1, 3, 8])
def test_requests_at_once_say_what_each_says_alone(engine, lone, count: int) -> None:
    for start in range(0, len(PROMPTS), count):
        numbers = list(range(len(PROMPTS)))[start : start + count]
        assert say(engine, numbers) == [lone[n] for n in numbers]


def test_a_request_says_the_same_from_shared_pages_and_after_it_made_room(
    engine, bundle: Path, lone
) -> None:
    assert say(engine, [7, 7, 7]) == [lone[7]] * 3
    with Engine(bundle, context=6 * PAGE, threads=1, parallel=1) as small:
        small.eos_token_ids = frozenset()
        small.scheduler.parallel = 8
        assert say(small, [5, 6, 4]) == [lone[n] for n in (5, 6, 4)]


def test_a_shared_page_is_copied_with_its_segment_means(engine) -> None:
    ids = PROMPTS[7]
    model = filled(engine, ids)
    fork = model.fork()
    fork.copy(int(model.sequence.page_table[4]), ids[4 * PAGE :])
    np.testing.assert_array_equal(fork.decode(5).copy(), model.decode(5))
    model.truncate(4 * PAGE + 20)  # within its own page, then within one that is shared
    model.truncate(2 * PAGE + 50)
    again = filled(engine, ids[: 2 * PAGE + 50])
    np.testing.assert_array_equal(model.decode(5).copy(), again.decode(5))
    for each in (model, fork, again):
        each.free()


def test_what_a_draft_head_has_read_goes_with_the_pages(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    grow = DraftModel.grow

    def counted(self: DraftModel, root: int, features: np.ndarray, *shape: Any) -> Any:
        read.append(len(features))
        return grow(self, root, features, *shape)

    monkeypatch.setattr(DraftModel, "grow", counted)
    with Engine(demo_bundle, context=1024, threads=1, attention="dense") as engine:
        engine.eos_token_ids = frozenset()
        prompt = [(31 * i) % 300 + 5 for i in range(1, 300)]

        def ask(max_tokens: int, speculate: str) -> tuple[list[object], Any]:
            heard: list[object] = []
            given = {"max_tokens": max_tokens, "temperature": 0, "speculate": speculate}
            generation = engine.generation(engine.request(prompt, given), Ids())
            return heard, engine.submit(generation, heard.append)

        expected, first = ask(24, "eagle")
        engine.until(lambda: first.over)
        assert max(read) >= 64
        read.clear()
        # the engine's own sequence is taken by one that ends soon: the other has a new head
        with engine.scheduler._turns.call():
            asked = [ask(4, "off"), ask(24, "eagle")]
        engine.until(lambda: all(task.over for _, task in asked))
        assert [e for e in asked[1][0] if isinstance(e, int)] == [
            e for e in expected if isinstance(e, int)
        ]
        stats = asked[1][1].generation.stats
        assert stats.cached_tokens >= 4 * PAGE and stats.speculation.rounds
        assert len(engine.scheduler.slots.all) == 2 and 0 < max(read) < 64
