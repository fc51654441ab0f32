"""Tools and schemas in Python: the prompts, calls and limits of serve's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_library import FakeLibrary, manifest, use_fake_library
from fake_serving import SIZES, write_model

from minicpm_mlc.base.errors import FieldError, SamplingError, TemplateError
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.events import Job
from minicpm_mlc.serve.openai_chat import ChatCompletions
from minicpm_mlc.serve.served import Served

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
PICK = {"name": "pick", "description": "Picks.", "parameters": SCHEMA}
QUESTION: list[Any] = [{"role": "user", "content": "hello"}]
HISTORY = [
    *QUESTION,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "pick", "arguments": '{"n": 1}'}}],
    },
    {"role": "tool", "content": "7"},
]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine whose logits are any."""
    write_model(tmp_path, monkeypatch)
    model = manifest().model | SIZES
    use_fake_library(monkeypatch, FakeLibrary, model=model, max_context=4000)
    with Engine(tmp_path) as opened:
        yield opened


def test_an_answer_follows_a_schema_however_it_is_asked_for(engine):
    assert 0 <= json.loads(engine.chat(QUESTION, schema=SCHEMA))["n"] <= 9
    assert json.loads("".join(engine.chat(QUESTION, stream=True, schema=SCHEMA))).keys() == {"n"}
    events = list(engine.chat_events(QUESTION, schema=SCHEMA))
    assert {kind for kind, _ in events} == {"answer"}
    assert json.loads("".join(text for _, text in events)).keys() == {"n"}
    said = engine.choices(QUESTION, n=3, schema=SCHEMA, temperature=1.0, seed=1)
    assert all(json.loads(choice.text).keys() == {"n"} for choice in said)

    async def asked() -> str:
        return await engine.achat(QUESTION, schema=SCHEMA)

    assert json.loads(asyncio.run(asked())).keys() == {"n"}


def test_a_call_is_read(engine):
    for choice in (
        "required",
        {"name": "pick"},
        {"type": "function", "function": {"name": "pick"}},
    ):
        (said,) = engine.choices(QUESTION, tools=[PICK], tool_choice=choice)
        ((name, arguments),) = said.calls
        assert name == "pick" and said.called and 0 <= json.loads(arguments)["n"] <= 9
    ((kind, text),) = engine.chat_events(QUESTION, tools=[PICK], tool_choice="required")
    assert kind == "call"
    assert json.loads(text).keys() == {"name", "arguments"}
    written = engine.chat(QUESTION, tools=[PICK], tool_choice="required")
    assert written.startswith(engine.chats.form.opening) and "pick(" in written


def test_a_constraint_of_the_caller_holds_too(engine):
    class No:
        """Forbids the digit that would come."""

        def apply(self, logits: Any) -> Any:
            return logits

        def accept(self, token_id: int) -> None:
            seen.append(token_id)

    seen: list[int] = []
    engine.chat(QUESTION, schema=SCHEMA, constraint=No())
    assert len(seen) > 5


@pytest.mark.parametrize("form", ["minicpm", "hermes", "minicpm5"])
def test_prompts_are_those_of_the_server(engine, form, monkeypatch):
    asked: list[list[int]] = []
    monkeypatch.setattr(
        Engine, "_choices", lambda self, job: asked.append(job.token_ids) or [], raising=True
    )
    engine.tool_format = form
    served = Served(engine, tool_format=form)
    for messages in (QUESTION, HISTORY):
        engine.choices(messages, tools=[PICK])
        body = {"messages": messages, "tools": [{"type": "function", "function": PICK}]}
        (job,) = ChatCompletions().ask(Fields(body), served).jobs
        assert isinstance(job, Job) and asked[-1] == job.token_ids
        assert "pick" in engine.tokenizer.raw.decode(asked[-1], skip_special_tokens=False)


def test_plain_messages_need_no_tools(engine):
    engine.choices(HISTORY, max_tokens=1)
    assert engine.stats.prompt_tokens > 10


@pytest.mark.parametrize(
    "options, error, said",
    [
        ({"tool_choice": "required"}, FieldError, "no tools"),
        ({"tools": [PICK, PICK]}, FieldError, "two tools"),
        ({"tools": [PICK], "tool_choice": {"name": "other"}}, FieldError, "no tool"),
        ({"tools": [{"name": "a b"}]}, FieldError, "name"),
        ({"tools": [3]}, FieldError, "object"),
        ({"schema": {"type": "array", "uniqueItems": True}}, SamplingError, "uniqueItems"),
        ({"temperature": -1}, SamplingError, "temperature"),
    ],
)
def test_what_can_not_be_is_refused_at_once(engine, options, error, said):
    for ask in (engine.chat, engine.chat_events, engine.choices, engine.achat):
        with pytest.raises(error, match=said):
            ask(QUESTION, **options)


def test_messages_that_no_template_takes_are_refused(engine):
    with pytest.raises(TemplateError, match="role tool"):
        engine.chat([{"role": "tool", "content": "1"}], tools=[PICK])
    with pytest.raises(FieldError, match="role"):
        engine.chat([{"role": "king", "content": "1"}], tools=[PICK])
