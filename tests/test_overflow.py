from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_library import TOKENIZER, use_fake_library

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.prompt.template import Message
from minicpm_mlc.runtime_py.overflow import kept_messages


def characters(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def conversation(*lengths: int, system: int = 0) -> list[Message]:
    """A system prompt, and a user's and an assistant's message in turn."""
    first: list[Message] = [{"role": "system", "content": "s" * system}] if system else []
    roles = ("user", "assistant")
    return first + [
        {"role": roles[i % 2], "content": "x" * length} for i, length in enumerate(lengths)
    ]


def test_everything_is_kept_where_an_answer_has_room() -> None:
    messages = conversation(10, 10, 10, 10, 10)
    assert kept_messages(messages, characters, 100) == [0, 1, 2, 3, 4]
    assert kept_messages(messages, characters, 65) != [0, 1, 2, 3, 4]
    assert kept_messages(messages, characters, 60, max_tokens=10) == [0, 1, 2, 3, 4]


def test_the_oldest_turns_go_until_a_quarter_is_free() -> None:
    messages = conversation(10, 10, 10, 10, 10, 10, 10, system=5)
    kept = kept_messages(messages, characters, 80)
    assert kept == [0, 3, 4, 5, 6, 7] and characters([messages[i] for i in kept]) <= 60


def test_pinned_turns_and_the_last_one_stay() -> None:
    messages = conversation(10, 10, 10, 10, 10, 10, 10)
    assert kept_messages(messages, characters, 50, pinned=[0]) == [0, 1, 6]
    assert kept_messages(messages, characters, 10, pinned=[3]) == [2, 3, 6]
    assert kept_messages(conversation(99), characters, 10) == [0]


def test_a_chat_longer_than_the_context_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    use_fake_library(monkeypatch)
    with Engine(tmp_path, context=128) as engine:
        messages = conversation(5, 5, 5, 5, 5)
        tokens = engine.count(messages)
        assert tokens == len(engine.template.prompt(engine.tokenizer.raw, messages).ids)
        assert 96 < tokens <= 126
        engine.chat(messages, max_tokens=2, overflow="drop_oldest")
        assert engine.stats.prompt_tokens == tokens  # two tokens fit
        engine.chat(messages, overflow="drop_oldest")
        assert engine.stats.prompt_tokens == engine.count(messages[2:]) <= 96
        engine.chat(messages, overflow="drop_oldest", pinned=[0])
        assert engine.stats.prompt_tokens == engine.count([*messages[:2], *messages[4:]])
        with pytest.raises(EngineError, match=r"overflow is 'x'; choose error, drop_oldest"):
            engine.chat(messages, overflow="x")
