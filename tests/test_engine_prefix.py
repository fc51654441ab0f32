"""Pages of texts before: native/engine begins with as many tokens of a prompt as Python does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from engine_process import EngineProcess

from minicpm_mlc import Engine

CONTEXT = 512  # 8 pages: some are given back


def prompts(draw: random.Random, count: int) -> list[list[int]]:
    """Some go on from a beginning of an earlier one, as conversations do."""
    made: list[list[int]] = []
    for _ in range(count):
        before = draw.choice(made) if made and draw.random() < 0.8 else []
        kept = before[: draw.randrange(len(before) + 1)]
        made.append([*kept, *(draw.randrange(4, 900) for _ in range(draw.randrange(1, 150)))][:400])
    return made


def test_the_same_tokens_are_kept_as_in_python(demo_bundle: Path) -> None:
    asked: Any = {"temperature": 0, "max_tokens": 6, "speculate": "off"}
    with (
        EngineProcess(demo_bundle, context=CONTEXT) as native,
        Engine(demo_bundle, context=CONTEXT) as python,
    ):
        shared = 0
        for ids in prompts(random.Random(1), 60):
            text = python.generate(ids, **asked)
            assert native.generate(ids, **asked) == text
            stats = native.stats()
            assert stats["cached_tokens"] == python.stats.cached_tokens, len(ids)
            shared += stats["cached_tokens"]
        assert shared > 500


def test_two_conversations_in_turn_are_both_kept(demo_bundle: Path, tmp_path: Path) -> None:
    first, second = list(range(4, 204)), list(range(304, 504))
    asked: Any = {"temperature": 0, "max_tokens": 4}
    with EngineProcess(demo_bundle, context=1024) as native:
        for ids in (first, second):
            ids += native.tokens(ids, **asked)
        for ids in (first, second):
            native.tokens(ids, **asked)
            assert native.stats()["cached_tokens"] == len(ids) - 1
        native.save(tmp_path / "state")
        native.truncate(0)
        native.tokens(first, **asked)
        assert native.stats()["cached_tokens"] == 0
    with EngineProcess(demo_bundle, context=1024, resume=str(tmp_path / "state")) as other:
        for ids in (first, second):
            other.tokens(ids, **asked)
            assert other.stats()["cached_tokens"] == len(ids) - 1
    with Engine(demo_bundle, context=1024, resume=tmp_path / "state") as python:
        for ids in (first, second):
            python.generate(ids, **asked)
            assert python.stats.cached_tokens == len(ids) - 1


def test_of_a_saved_state_what_fits_is_taken(demo_bundle: Path, tmp_path: Path) -> None:
    first, second = list(range(4, 260)), list(range(304, 460))
    asked: Any = {"temperature": 0, "max_tokens": 4}
    with EngineProcess(demo_bundle, context=1024) as native:
        for ids in (first, second):
            native.tokens(ids, **asked)
        native.save(tmp_path / "state")
    with EngineProcess(demo_bundle, context=256, resume=str(tmp_path / "state")) as small:
        small.tokens(second, **asked)
        assert small.stats()["cached_tokens"] == len(second) - 1
