"""What a draft bundle reads of a text: all of it or its end, more when it may, nothing twice, never
another text.
"""

from __future__ import annotations

import numpy as np
import pytest
from fake_library import FIRST_WORD, PAGE, VOCAB, FakeLibrary

from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.paged_cache import PagedCache
from minicpm_mlc.runtime_py.speculative.draft_bundle import ModelDrafter
from minicpm_mlc.runtime_py.speculative.tree import Draft

TEXT = np.random.default_rng(0).integers(FIRST_WORD, FIRST_WORD + 8, 1000).astype(np.int32)


def guess(history: list[int]) -> int:
    """What the model says: it depends on all that it sees, and is no token of the text."""
    return FIRST_WORD + 8 + sum(history) % (VOCAB - FIRST_WORD - 11)


class Reader:
    """A drafter whose model counts the rows it computes."""

    def __init__(self, context: int = 2000) -> None:
        self.library = FakeLibrary(guess)
        cache = PagedCache(self.library, context)
        self.model = CachedModel(cache, context, Gears("dense", None, 0, PAGE))
        self.drafter = ModelDrafter(self.model, 256)

    def draft(
        self, length: int, read: int | None, text: np.ndarray = TEXT, depth: int = 3, top_k: int = 1
    ) -> Draft | None:
        return self.drafter.draft(text[:length], depth, top_k, 0.0, read)

    def reads(self, length: int, read: int | None, text: np.ndarray = TEXT) -> int:
        """Tokens read before drafting; the guesses are those of a model that sees just the text it
        should.
        """
        draft = self.draft(length, read, text)
        assert draft is not None
        seen = text[self.drafter._first : length].tolist()
        for token in draft.tree.token_ids[1:]:
            assert token == guess(seen)
            seen.append(int(token))
        return draft.read_tokens


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_all_of_a_text_is_read_once(reader: Reader) -> None:
    assert reader.reads(900, None) == 900
    assert reader.reads(903, None) == 3
    assert reader.reads(950, 47) == 47
    assert (
        reader.reads(998, 47) == 47 and reader.drafter._first == 998 - 47
    )  # one too many was missed


def test_of_a_long_text_the_end_is_read_and_then_followed(reader: Reader) -> None:
    assert [reader.reads(length, 64) for length in (800, 801, 804, 860)] == [64, 1, 3, 56]
    assert reader.drafter._first == 800 - 64
    assert reader.reads(960, 64) == 64 and reader.drafter._first == 960 - 64  # too much was missed


def test_what_may_read_twice_as_much_sees_more(reader: Reader) -> None:
    assert reader.reads(800, 64) == 64
    assert reader.reads(810, 120) == 10
    assert reader.reads(811, 300) == 300
    assert reader.reads(812, 500) == 1
    assert reader.reads(813, 5000) == 813
    assert reader.reads(814, 5000) == 1


def test_accepted_guesses_are_not_read_again(reader: Reader) -> None:
    draft = reader.draft(700, None, depth=4)
    assert draft is not None
    accepted = np.array([*TEXT[:700], *draft.tree.token_ids[1:4]], np.int32)
    assert reader.reads(703, None, accepted) == 1


@pytest.mark.parametrize("read", [None, 64])
def test_another_text_is_not_taken_for_the_one_that_was_read(
    reader: Reader, read: int | None
) -> None:
    reader.reads(800, read)
    other = TEXT.copy()
    other[[770, 5]] = FIRST_WORD
    for text, length in ((other, 800), (TEXT[100:], 700), (TEXT, 30), (TEXT, 900)):
        reader.drafter.begin()
        reader.reads(length, read, text)


def test_a_conversation_that_goes_on_is_read_on(reader: Reader) -> None:
    reader.reads(800, 64)
    reader.drafter.begin()
    assert reader.reads(850, 64) == 50


def test_a_text_longer_than_the_models_context_is_read_from_its_end() -> None:
    reader = Reader(context=100)
    assert reader.reads(50, None) == 50
    assert [reader.reads(length, None) for length in (97, 98, 99, 140)] == [47, 50, 1, 41]
    assert reader.draft(150, None, depth=100) is None


def test_trees_are_drafted_from_the_end_of_a_text_too(reader: Reader) -> None:
    def say(seen: list[int]) -> list[int]:
        return np.argsort(-reader.library.row(seen))[:2].tolist()

    draft = reader.draft(800, 64, depth=2, top_k=2)
    assert draft is not None
    seen = TEXT[800 - 64 : 800].tolist()
    best = say(seen)
    assert {draft.tree.children[0, token] for token in best} <= set(range(1, 7))
    for token in best:
        node = draft.tree.children[0, token]
        assert all((node, next_token) in draft.tree.children for next_token in say([*seen, token]))


def test_rob_03_a_token_that_the_smaller_vocabulary_lacks_is_not_drafted_from() -> None:
    reader = Reader()
    reader.library.vocab_size = FIRST_WORD + 8
    text = TEXT.copy()
    text[40] = FIRST_WORD + 8
    assert reader.draft(40, None, text) is not None
    assert reader.draft(41, None, text) is None
    assert reader.draft(50, 5, text) is not None  # which leaves it behind
