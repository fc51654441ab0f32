"""What an EAGLE head is given to read: the text's features, in order, the latest of a long text,
nothing twice.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm_mlc.runtime_py.draft_loop import REACH, TOKEN
from minicpm_mlc.runtime_py.draft_model import Grown
from minicpm_mlc.runtime_py.kv_cache import common_prefix
from minicpm_mlc.runtime_py.speculative.eagle import READ_TOKENS, EagleDrafter

PAGE = 16
MISSING = (0.0, 0.0)


def feature(tokens: list[int], place: int) -> tuple[float, float]:
    """What the model gives for a token: its place, and a number that only this text up to it
    has.
    """
    return float(place), float(hash(tuple(tokens[: place + 1])) % 99991)


class Text:
    """A cached model whose tokens are their places, unless told otherwise."""

    def __init__(self) -> None:
        self.features = np.zeros((0, 2), np.float32)
        self.sequence = SimpleNamespace(
            context=10_000, room=10_000, pool=SimpleNamespace(page_size=PAGE), tokens=[]
        )

    def __len__(self) -> int:
        return len(self.sequence.tokens)

    def grow(self, n: int) -> Any:
        return self.append(list(range(len(self), len(self) + n)))

    def append(self, more: list[int]) -> Any:
        tokens, start = self.sequence.tokens, len(self)
        tokens += more
        self.features = np.array(
            [feature(tokens, place) for place in range(start, len(tokens))], np.float32
        )
        return self

    def cut(self, length: int) -> None:
        del self.sequence.tokens[length:]


class Head:
    """Keeps what each of its rows was made of: a token's features and the token after it."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.read: list[int] = []
        self.rows: dict[int, tuple[tuple[float, float], int]] = {}

    def truncate(self, length: int) -> int:
        self.rows = {row: made for row, made in self.rows.items() if row < length}
        return length

    def adopt(self, length: int) -> int:
        return 0

    def grow(self, root: int, features: np.ndarray, levels: int, width: int, floor: float) -> Grown:
        tokens, start = self.text.sequence.tokens, len(self.text) - len(features)
        self.read = features[:, 0].astype(int).tolist()
        if start and start - 1 not in self.rows:
            self.rows.clear()  # nothing before a gap is seen
        self.truncate(start)
        follows = [*tokens[start + 1 :], root]
        self.rows |= {
            start + i: (tuple(row), follows[i]) for i, row in enumerate(features.tolist())
        }
        assert (levels, width) == (1, 2)
        tree = np.zeros((1, 3, 2), np.int32)
        tree[0, TOKEN] = 7, 8
        tree[0, REACH] = np.array([-0.1, -3.0], np.float32).view(np.int32)
        return Grown(tree, 0.001)

    def check(self, root: int) -> None:
        """Every row is made of the text as it is now, but for features that were never there."""
        text = [*self.text.sequence.tokens, root]
        for row, (made, follows) in self.rows.items():
            assert follows == text[row + 1] and made in (feature(text, row), MISSING), row
        assert len(self.text) - 1 in self.rows


@pytest.fixture
def parts() -> tuple[EagleDrafter, Head, Text]:
    text = Text()
    head = Head(text)
    return EagleDrafter(head, text), head, text  # type: ignore[arg-type]


def draft(drafter: EagleDrafter, root: int = -1) -> Any:
    return drafter.draft(np.array([1, 2, root], np.int32), 1, 2, 0.0)


def test_every_token_is_read_once_and_in_order(parts) -> None:
    drafter, head, text = parts
    read = []
    for n in (5, 1, 1, 40, 3):
        drafter.cached(text.grow(n))
        if n != 40:
            found = draft(drafter, len(text))
            assert list(found.tree.token_ids) == [len(text), 7, 8]
            assert found.read_tokens == len(head.read) and (found.reading > 0) == (
                len(head.read) > 16
            )
            read += head.read
    assert read == list(range(50))


@pytest.mark.parametrize(
    "chunks", [[1000], [300, 700], [1] * 1000, [990, *[1] * 10], [1] * 5 + [995]]
)
def test_of_a_long_text_the_last_pages_are_read(parts, chunks: list[int]) -> None:
    drafter, head, text = parts
    for n in chunks:
        drafter.cached(text.grow(n))
    draft(drafter)
    begin = (1000 - READ_TOKENS) // PAGE * PAGE
    assert (
        head.read[-1] == 999
        and head.read == list(range(head.read[0], 1000))
        and begin - PAGE < head.read[0] <= begin
    )


def test_what_came_before_tokens_that_were_not_seen_is_forgotten(parts) -> None:
    drafter, head, text = parts
    drafter.cached(text.grow(20))
    text.grow(4)
    drafter.cached(text.grow(3))
    draft(drafter)
    assert head.read == [24, 25, 26]
    text.grow(1)
    assert draft(drafter) is None  # the last token's features are missing


def test_tokens_followed_before_a_new_call_are_read_in_it(parts) -> None:
    """The prompt was computed by a call that drafted otherwise or not at all; a call on the same
    prompt reads it.
    """
    drafter, head, text = parts
    drafter.cached(text.grow(20))
    text.cut(12)
    drafter.begin()
    assert draft(drafter) is not None and head.read == list(range(12))
    text.cut(11)
    drafter.begin()
    drafter.cached(text.grow(3))
    draft(drafter, len(text))
    assert head.read == [11, 12, 13]
    head.check(len(text))


def test_rows_of_the_same_text_are_not_read_again(parts) -> None:
    drafter, head, text = parts
    for _ in range(2):
        drafter.begin()
        drafter.cached(text.grow(30 - len(text)))
        draft(drafter, 30)
        drafter.cached(text.grow(200))
        draft(drafter, len(text))
        text.cut(29)
    drafter.begin()
    drafter.cached(text.grow(1))
    draft(drafter, 30)
    assert head.read == [29]


def test_a_text_that_changed_in_a_call_that_was_not_followed_is_not_taken_for_read(parts) -> None:
    drafter, head, text = parts
    drafter.cached(text.grow(100))
    draft(drafter)
    text.cut(10)
    text.append([7] * 70)
    text.cut(79)
    drafter.begin()
    drafter.cached(text.append([5] * 11))
    draft(drafter)
    head.check(-1)
    assert head.read == list(range(79, 90))


def test_a_row_whose_next_token_changed_is_read_again_even_without_its_features(parts) -> None:
    drafter, head, text = parts
    drafter.cached(text.grow(20))
    draft(drafter, 20)
    drafter.cached(text.grow(500))
    draft(drafter, 520)
    text.cut(505)
    drafter.begin()
    drafter.cached(text.append([3, 4]))
    draft(drafter)
    assert head.read[-3:] == [504, 505, 506]
    head.check(-1)
    drafter.cached(text.append([-1, *range(300)]))  # features of 504 are long gone
    draft(drafter)
    text.cut(505)
    drafter.begin()
    drafter.cached(text.append([9]))
    draft(drafter)
    assert head.rows[504] == (MISSING, 9)
    head.check(-1)


calls = st.lists(
    st.tuples(
        st.sampled_from(["eagle", "followed", "prompt alone", "unseen"]),
        st.floats(0, 1),
        st.lists(st.integers(0, 2), min_size=1, max_size=40),
        st.lists(st.integers(0, 2), max_size=30),
    ),
    min_size=1,
    max_size=8,
)


@given(calls)
def test_after_any_calls_the_head_holds_nothing_that_the_text_does_not(made: list) -> None:
    text = Text()
    head = Head(text)
    drafter = EagleDrafter(head, text)  # type: ignore[arg-type]
    for kind, kept, prompt, answer in made:
        start = int(kept * len(text))
        wanted = [*text.sequence.tokens[:start], *prompt]
        text.cut(common_prefix(text.sequence.tokens, wanted[:-1]))
        if kind != "unseen":
            drafter.begin()
        text.append(wanted[len(text) :])
        if kind != "unseen":
            drafter.cached(text)
        for token in answer:
            if kind == "eagle":
                draft(drafter, token)
                head.check(token)
            text.append([token])
            if kind in ("eagle", "followed"):
                drafter.cached(text)
