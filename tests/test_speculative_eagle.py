"""What an EAGLE head is given to read: the text's features, in order, the latest of a long text, nothing twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minicpm_mlc.runtime_py.draft_model import Proposed
from minicpm_mlc.runtime_py.speculative.eagle import READ, EagleDrafter

PAGE = 16


class Text:
    """A cached model: token i's features are (i, i)."""

    def __init__(self) -> None:
        self.length = 0
        self.features = np.zeros((0, 2), np.float32)
        self.sequence = SimpleNamespace(context=10_000, pool=SimpleNamespace(page_size=PAGE))

    def __len__(self) -> int:
        return self.length

    def grow(self, n: int) -> Any:
        self.features = np.repeat(np.arange(self.length, self.length + n, dtype=np.float32)[:, None], 2, 1)
        self.length += n
        return self


class Head:
    """Keeps the numbers of the tokens whose features it was given."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def truncate(self, length: int) -> None:
        self.kept = length

    def extend(self, root: int, features: np.ndarray) -> Proposed:
        self.read = features[:, 0].astype(int).tolist()
        return Proposed(np.array([[7, 8]]), np.array([[-0.1, -3.0]], np.float32), np.zeros((1, 4), np.float32))


@pytest.fixture
def parts() -> tuple[EagleDrafter, Head, Text]:
    head, text = Head(), Text()
    return EagleDrafter(head, text), head, text  # type: ignore[arg-type]


def draft(drafter: EagleDrafter) -> Any:
    return drafter.draft(np.array([1, 2, 3], np.int32), 1, 2, 0.0)


def test_every_token_is_read_once_and_in_order(parts) -> None:
    drafter, head, text = parts
    read = []
    for n in (5, 1, 1, 40, 3):
        drafter.cached(text.grow(n))
        if n != 40:
            found = draft(drafter)
            assert list(found.tree.token_ids) == [3, 7, 8] and (found.read_seconds > 0) == (len(head.read) > 16)
            read += head.read
    assert read == list(range(50))


@pytest.mark.parametrize("chunks", [[1000], [300, 700], [1] * 1000, [990, *[1] * 10], [1] * 5 + [995]])
def test_of_a_long_text_the_last_pages_are_read(parts, chunks: list[int]) -> None:
    drafter, head, text = parts
    for n in chunks:
        drafter.cached(text.grow(n))
    draft(drafter)
    begin = (1000 - READ) // PAGE * PAGE
    assert head.read[-1] == 999 and head.read == list(range(head.read[0], 1000)) and begin - PAGE < head.read[0] <= begin


def test_what_came_before_tokens_that_were_not_seen_is_forgotten(parts) -> None:
    drafter, head, text = parts
    drafter.cached(text.grow(20))
    text.grow(4)
    drafter.cached(text.grow(3))
    draft(drafter)
    assert head.read == [24, 25, 26]
    text.grow(1)
    assert draft(drafter) is None  # the last token's features are missing


def test_a_text_that_was_cut_is_read_from_the_cut_on(parts) -> None:
    drafter, head, text = parts
    drafter.cached(text.grow(20))
    text.length = 12
    drafter.begin()
    assert head.kept == 12 and draft(drafter) is None
    drafter.cached(text.grow(2))
    draft(drafter)
    assert head.read == [12, 13]
