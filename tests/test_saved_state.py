"""Computed tokens go to a file and back: the same pages, and the same answers from them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_library import FIRST_WORD, PAGE, FakeLibrary, RecurrentLibrary, use_fake_library

from minicpm_mlc.base.errors import ContextError, EngineError
from minicpm_mlc.runtime_py import engine as engine_module
from minicpm_mlc.runtime_py.device_pool import DevicePool
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.generation import Ids
from minicpm_mlc.runtime_py.kv_cache import PagePool
from minicpm_mlc.runtime_py.prefix_cache import Kept
from minicpm_mlc.runtime_py.saved_state import load_state, save_state

PROMPT = [1, *range(30, 70)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    """opened(**options) of Engine; `manifest` is the SHA-256 of its bundle's manifest."""

    def make(manifest: str = "a" * 64, **options: Any) -> Engine:
        use_fake_library(monkeypatch)
        monkeypatch.setattr(engine_module, "manifest_sha256", lambda path, part: manifest)
        engine = Engine("", **options)
        engine.eos_token_ids = frozenset()
        return engine

    return make


def say(engine: Engine, prompt: list[int], **options: Any) -> list[object]:
    options = {"max_tokens": 12, "temperature": 0, **options}
    generation = engine.generation(engine.request(prompt, options), Ids())
    return list(engine._pieces(generation))


def computed(engine: Engine) -> int:
    """Rows that its library has computed."""
    assert isinstance(engine.library, FakeLibrary)
    return sum(engine.library.calls)


class MemoryOfArrays:
    """What DevicePool asks of a device's memory, whose tensors are arrays here."""

    def part(self, tensor: np.ndarray, first: int, count: int) -> np.ndarray:
        return tensor[first : first + count]

    def array(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.copy()

    def write(self, tensor: np.ndarray, array: np.ndarray) -> None:
        tensor[...] = array


def test_pages_of_a_device_are_stored_as_an_arrays(tmp_path: Path) -> None:
    pools = [np.random.default_rng(0).random((9, 3, 2), np.float32), np.arange(18).reshape(9, 2)]
    kept = [Kept(-1, (1,) * PAGE, 5), Kept(0, (2,) * PAGE, 6), Kept(1, (3, 4), 2)]
    memory: Any = MemoryOfArrays()

    def saved(name: str, arrays: Any) -> bytes:
        save_state(tmp_path / name, "manifest", kept, [1, 2], arrays)
        return (tmp_path / name).read_bytes()

    assert saved("device", [DevicePool(memory, pool) for pool in pools]) == saved("host", pools)
    loaded = [np.zeros_like(pool) for pool in pools]
    pages = PagePool(9, PAGE)
    taken = [pages.take() for _ in range(3)]
    pages.release(taken[1])  # what is loaded doesn't lie side by side
    there, _ = load_state(
        tmp_path / "host", "manifest", pages, [DevicePool(memory, pool) for pool in loaded]
    )
    for pool, copy in zip(pools, loaded, strict=True):
        assert np.array_equal(copy[[each.page for each in there]], pool[[5, 6, 2]])


def test_another_engine_goes_on_with_the_same_tokens(opened, tmp_path: Path) -> None:
    engine = opened()
    answer = say(engine, PROMPT)
    other = say(engine, [*PROMPT[:9], 5, 6])
    engine.save(tmp_path / "state")
    resumed = opened(resume=tmp_path / "state")
    assert resumed.cached_tokens == engine.cached_tokens
    expected = engine.decode(FIRST_WORD)
    np.testing.assert_array_equal(resumed.decode(FIRST_WORD), expected)
    before = computed(resumed)
    assert say(resumed, PROMPT, speculate="off") == answer
    assert resumed.stats.cached_tokens == len(PROMPT) - 1
    assert computed(resumed) - before == 12
    assert say(resumed, [*PROMPT[:9], 5, 6]) == other
    assert resumed.stats.cached_tokens == 10


def test_a_prompt_that_is_being_computed_is_saved_as_far_as_it_is(opened, tmp_path: Path) -> None:
    engine, path = opened(), tmp_path / "state"
    saves = []

    def save(done: int, total: int) -> None:
        if not saves and done > total / 2:
            engine.save(path)
            saves.append(done)

    answer = say(engine, PROMPT, on_prefill=save)
    resumed = opened(resume=path)
    assert resumed.cached_tokens == PROMPT[: saves[0]]
    assert say(resumed, PROMPT) == answer and resumed.stats.cached_tokens == saves[0]


def test_an_empty_engine_is_saved_too(opened, tmp_path: Path) -> None:
    opened().save(tmp_path / "state")
    assert opened(resume=tmp_path / "state").cached_tokens == []


def test_pages_that_do_not_lie_side_by_side_are_read(opened, tmp_path: Path, monkeypatch) -> None:
    engine = opened()
    answer = say(engine, PROMPT)
    engine.save(tmp_path / "state")
    resumed = opened()
    beside = [resumed.open_sequence() for _ in range(9)]
    for one in beside:
        list(one.prefill([5], PAGE))
    for one in beside[::2]:
        one.free()
    resumed.scheduler.slots.load(tmp_path / "state", "a" * 64)
    assert say(resumed, PROMPT) == answer and resumed.stats.cached_tokens == len(PROMPT) - 1


@pytest.fixture
def saved(opened, tmp_path: Path) -> Path:
    engine = opened()
    say(engine, PROMPT)
    engine.save(tmp_path / "state")
    return tmp_path / "state"


def test_a_byte_that_changed_anywhere_is_seen(opened, saved: Path) -> None:
    whole = saved.read_bytes()
    for at in np.linspace(0, len(whole) - 1, 60).astype(int):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        saved.write_bytes(damaged)
        with pytest.raises(EngineError, match=r"is damaged|is not a saved state"):
            opened(resume=saved)


def test_a_file_that_was_cut_or_went_on_is_refused(opened, saved: Path) -> None:
    whole = saved.read_bytes()
    for data in (whole[:0], whole[:10], whole[:-1], whole[: len(whole) // 2], whole + b"x"):
        saved.write_bytes(data)
        with pytest.raises(EngineError, match=r"is damaged|is not a saved state"):
            opened(resume=saved)


def test_texts_that_are_no_tree_are_refused_though_the_hashes_are_right(
    opened, saved: Path, monkeypatch
) -> None:
    from minicpm_mlc.runtime_py import saved_state

    plain = saved_state._texts
    for place, value in ((0, 7), (1, -2), (13, 9), (14, 0)):

        def changed(*given: Any, place: int = place, value: int = value) -> np.ndarray:
            texts = plain(*given)
            texts[place] = value
            return texts

        engine = opened()
        say(engine, PROMPT)
        with monkeypatch.context() as patch:
            patch.setattr(saved_state, "_texts", changed)
            engine.save(saved)
        with pytest.raises(EngineError, match="is damaged"):
            opened(resume=saved)


def test_another_bundles_state_is_refused_with_both_hashes(opened, saved: Path) -> None:
    with pytest.raises(EngineError, match=f"{'a' * 64}, this one has {'b' * 64}"):
        opened(manifest="b" * 64, resume=saved)


def test_a_smaller_cache_is_told_how_much_it_lacks(opened, saved: Path) -> None:
    with pytest.raises(ContextError, match=r"has 13 pages .* room for 5"):
        opened(context=5 * PAGE, resume=saved)


def test_a_missing_file_and_a_full_disk_are_one_sentence(opened, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nothing can't be read"):
        opened(resume=tmp_path / "nothing")
    with pytest.raises(EngineError, match="can't be written"):
        opened().save(tmp_path / "no folder" / "state")


def test_nothing_is_left_where_writing_fails(opened, saved: Path, monkeypatch) -> None:
    before = hashlib.sha256(saved.read_bytes()).digest()
    engine = opened()
    say(engine, PROMPT[::-1])

    def fails(pools: Any) -> list[np.ndarray]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine.library, "pool_arrays", fails)
        with pytest.raises(MemoryError):
            engine.save(saved)
    assert hashlib.sha256(saved.read_bytes()).digest() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_model_with_state_per_sequence_is_not_saved(opened, tmp_path: Path, monkeypatch) -> None:
    opened()
    library = RecurrentLibrary()
    use_fake_library(monkeypatch, lambda: library, state=library.manifest.state)
    with pytest.raises(EngineError, match="keeps state per sequence"):
        Engine("").save(tmp_path / "state")
