"""A model with state per sequence: it can't go back, so a sequence that is cut is computed again
from its first token, and nothing is drafted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_library import FIRST_WORD, PAGE, TOKENIZER, FakeLibrary, RecurrentLibrary

from minicpm_mlc.base.errors import BundleError, EngineError
from minicpm_mlc.bundle.manifest import Bundle
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.kv_cache import PagePool, Sequence
from minicpm_mlc.runtime_py.local_machine import LocalMachine

PROMPT = [1, *range(FIRST_WORD, FIRST_WORD + 11)]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeLibrary], Engine]:
    """build(library) opens an engine over it."""
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    (tmp_path / "generation_config.json").write_text('{"do_sample": false}')

    def make(library: FakeLibrary, **options: str) -> Engine:
        bundle = Bundle(tmp_path, library.manifest)
        monkeypatch.setattr(LocalMachine, "read_bundle", lambda machine, path, device=None: bundle)
        monkeypatch.setattr(LocalMachine, "open_library", lambda *_: library)
        return Engine(tmp_path, **options)

    return make


@pytest.fixture
def fake() -> RecurrentLibrary:
    return RecurrentLibrary()


def test_its_answers_are_those_of_pages(build, fake) -> None:
    expected = build(FakeLibrary()).generate(PROMPT, max_tokens=20, speculate="off")
    assert build(fake).generate(PROMPT, max_tokens=20) == expected


def test_a_sequence_that_is_cut_is_empty_and_one_that_is_not_stays() -> None:
    sequence = Sequence(PagePool(4, PAGE), 16, recurrent=True)
    sequence.reserve(9)
    sequence.append(range(9))
    assert sequence.fork().tokens == []
    assert sequence.truncate(9) == 9
    assert len(sequence.page_table) == 3
    assert sequence.truncate(8) == 0 and len(sequence.page_table) == 0


def test_a_longer_prompt_goes_on_and_another_one_starts_again(build, fake) -> None:
    engine = build(fake)
    engine.prefill(PROMPT)
    engine.generate([*PROMPT, 9, 8], max_tokens=1)
    assert engine.stats.cached_tokens == len(PROMPT)
    engine.generate([*PROMPT[:5], 9], max_tokens=1)
    assert engine.stats.cached_tokens == 0


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_call_that_broke_off_leaves_nothing_behind(build, fake, monkeypatch, kind) -> None:
    engine, call = build(fake), getattr(fake, kind)
    engine.prefill(PROMPT)

    def interrupted(*arguments):
        call(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fake, kind, interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.prefill([7]) if kind == "prefill" else engine.decode(7)
    assert engine.cached_tokens == []
    expected = build(FakeLibrary()).generate(PROMPT, max_tokens=9)
    assert engine.generate(PROMPT, max_tokens=9) == expected


def test_nothing_is_drafted(build, fake) -> None:
    engine = build(fake)
    with pytest.raises(EngineError, match=r"keeps state per sequence, .*; leave speculation off"):
        engine.generate(PROMPT, speculate="ngram")
    with pytest.raises(BundleError, match=r"--draft-model small: .* keeps state per sequence"):
        build(fake, draft="small")
    with pytest.raises(ValueError, match="its tokens can only be decoded"):
        engine.model.verify([1], [-1])
    assert engine.drafters == {}


def test_a_draft_bundle_that_keeps_state_is_refused(build, fake, monkeypatch, tmp_path) -> None:
    library = FakeLibrary()
    bundles = iter([Bundle(tmp_path, library.manifest), Bundle(tmp_path, fake.manifest)])
    build(library)
    monkeypatch.setattr(LocalMachine, "read_bundle", lambda machine, path, *device: next(bundles))
    with pytest.raises(BundleError, match="--draft-model small: small keeps state per sequence"):
        Engine(tmp_path, draft="small")


def test_a_second_sequence_is_refused(build, fake) -> None:
    with pytest.raises(EngineError, match="keeps state per sequence; open a second Engine"):
        build(fake).open_sequence()
    with pytest.raises(ValueError, match="keeps state per sequence: it can't be forked"):
        build(fake).model.fork()


def test_its_state_counts_as_memory(fake) -> None:
    assert fake.manifest.memory_need(PAGE) == 1000 + 10 * PAGE + 8 * 4 + 100
