"""native/engine guesses tokens ahead: the same text as without, and with trees of a given size the
same trees as Python's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyBundle
from engine_process import EngineProcess, Refused

from minicpm_mlc import Engine

CONTEXT = 1024
COUNTED = ("rounds", "plain_steps", "nodes", "accepted", "drafters", "drafted_at", "accepted_at")
QUESTIONS = [
    "What is 4827 + 356?",
    "Remember: the code of the red door is 7.",
    "Count to 9. /think",
]
PLAIN: dict[str, Any] = {"speculate": "off"}
TREES: list[dict[str, Any]] = [
    {"speculate": "ngram", "tree_size": 8, "draft_depth": 4, "draft_top_k": 2},
    {"speculate": "ngram", "tree_size": 64, "draft_depth": 16, "draft_top_k": 4},
    {"speculate": "eagle", "tree_size": 2, "draft_depth": 1, "draft_top_k": 1},
    {"speculate": "eagle", "tree_size": 6, "draft_depth": 5, "draft_top_k": 1},
    {"speculate": "eagle", "tree_size": 24, "draft_depth": 4, "draft_top_k": 4},
    {"speculate": "eagle", "tree_size": 60, "draft_depth": 5, "draft_top_k": 10},
]


@pytest.fixture(scope="module")
def both(demo_bundle: Path) -> Iterator[tuple[EngineProcess, Engine]]:
    """That are asked the same in the same order."""
    with (
        EngineProcess(demo_bundle, context=CONTEXT) as native,
        Engine(demo_bundle, context=CONTEXT) as python,
    ):
        yield native, python


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def joined(pieces: Iterable[tuple[object, str]]) -> str:
    return "".join(text for _, text in pieces)


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_the_same_trees_and_texts(both: tuple[EngineProcess, Engine], tree: dict[str, Any]) -> None:
    native, python = both
    for question in QUESTIONS:
        for sampling in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}):
            asked: dict[str, Any] = {"max_tokens": 48, **sampling}
            for options in (PLAIN, tree):
                said = native.chat(user(question), **asked, **options)
                expected = python.chat_events(user(question), **asked, **options)
                assert joined(said) == joined(expected)
            found, wanted = native.stats(), asdict(python.stats.speculation)
            figures = found["speculation"]
            assert {name: figures[name] for name in COUNTED} == {n: wanted[n] for n in COUNTED}
            assert figures["accept_length"] == pytest.approx(wanted["accept_length"], abs=1e-4)
            assert found["generated_tokens"] == python.stats.generated_tokens
            assert found["context_used"] == python.stats.context_used
    assert native.stats()["speculation"]["rounds"] or tree["speculate"] == "ngram"


@pytest.mark.parametrize("speculate", ["auto", "ngram", "eagle"])
def test_what_pays_changes_no_token(both: tuple[EngineProcess, Engine], speculate: str) -> None:
    """Dense, shifting, sparse; greedy and drawn; several calls, as the policy learns."""
    native, python = both
    dense_len = python.manifest.dense_len
    assert dense_len
    for length in (30, dense_len - 9, dense_len + 70):
        ids = [4 + i % 37 for i in range(length)]
        for options in ({"temperature": 0}, {"temperature": 0.8, "seed": 5, "top_k": 30}):
            asked: dict[str, Any] = {"max_tokens": 40, **options}
            plain = native.tokens(ids, speculate="off", **asked)
            assert native.tokens(ids, speculate=speculate, **asked) == plain, (length, options)
    assert native.stats()["speculation"]["decision"]


def test_limits_end_within_a_tree(both: tuple[EngineProcess, Engine], demo_bundle: Path) -> None:
    native, _ = both
    ids = [5, 6, 7] * 20
    tree = {"temperature": 0, **TREES[1]}
    for most in (1, 2, 3, 7):
        plain = native.tokens(ids, temperature=0, max_tokens=most, speculate="off")
        used = native.stats()["context_used"]
        assert native.tokens(ids, max_tokens=most, **tree) == plain and len(plain) <= most
        assert native.stats()["context_used"] == used
    with EngineProcess(demo_bundle, context=100) as small:
        plain = small.tokens(ids, temperature=0, speculate="off")
        for speculate in ("ngram", "eagle"):
            assert small.tokens(ids, temperature=0, speculate=speculate) == plain
            assert small.stats()["finish_reason"] in ("context", "stop")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speculate": "sometimes"}, "expected auto, off, ngram or eagle"),
        ({"tree_size": 65}, "1 to 64"),
        ({"draft_depth": 0}, "1 to 16"),
        ({"draft_depth": 16, "draft_top_k": 9}, "at most 64 fit"),
    ],
)
def test_options_that_are_refused(
    both: tuple[EngineProcess, Engine], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(Refused, match=says):
        both[0].tokens([5], **options)


def test_a_bundle_without_a_head_says_so(tiny_bundle: Callable[..., TinyBundle]) -> None:
    with EngineProcess(tiny_bundle("MiniCPM4-0.5B").path, context=256) as native:
        with pytest.raises(Refused, match=r"has no draft head.*--draft HEAD"):
            native.tokens([5], speculate="eagle")
        ids = [5, 6, 7, 8] * 12
        plain = native.tokens(ids, temperature=0, max_tokens=20, speculate="off")
        assert native.tokens(ids, temperature=0, max_tokens=20) == plain
        assert native.tokens(ids, temperature=0, max_tokens=20, **TREES[0]) == plain
        assert native.stats()["speculation"]["rounds"]
