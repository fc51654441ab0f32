"""Bodies with something wrong anywhere: every one is answered or refused, none is our mistake."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from fake_library import EOS, TOKENIZER, manifest, use_fake_library

from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.serve import anthropic, ollama_info, served, tokens
from minicpm_mlc.serve.anthropic import Messages
from minicpm_mlc.serve.errors import api_error
from minicpm_mlc.serve.ollama import OllamaChat, OllamaGenerate
from minicpm_mlc.serve.openai_chat import ChatCompletions
from minicpm_mlc.serve.openai_completions import Completions
from minicpm_mlc.serve.responses import Responses

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "q"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "r"},
    {"role": "tool", "tool_call_id": "1", "name": "f", "content": "7"},
]
CHAT = {
    "model": "m",
    "messages": TALK,
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 4,
    "min_p": 0.1,
    "seed": 3,
    "stop": ["x"],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"5": 1.5},
    "presence_penalty": 0.5,
    "stream": True,
    "stream_options": {"include_usage": True},
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_budget": 3,
    "min_tokens": 0,
}
RESPONSE = {
    "model": "m",
    "instructions": "i",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "reasoning", "summary": [], "content": []},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "7"},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}, {"type": "web_search"}],
    "tool_choice": "auto",
    "reasoning": {"effort": "low", "summary": None},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "max_output_tokens": 5,
}
MESSAGES = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "s", "cache_control": {}}],
    "messages": [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "7"}]},
    ],
    "stop_sequences": ["x"],
    "tools": [{"name": "f", "input_schema": SCHEMA}, {"type": "web_search_1", "name": "w"}],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled", "budget_tokens": 3},
}
OLLAMA = {
    "model": "m",
    "messages": [{"role": "user", "content": "q", "images": []}],
    "tools": [TOOL],
    "format": SCHEMA,
    "options": {"temperature": 0.5, "num_ctx": 100, "num_predict": 4, "stop": ["x"], "seed": 1},
    "think": False,
    "keep_alive": "5m",
}
GENERATE = {"model": "m", "prompt": "q", "system": "s", "raw": False, "options": {"top_k": 3}}
COMPLETION = {
    "model": "m",
    "prompt": [[1, 5, 6], [1, 7]],
    "echo": True,
    "logprobs": 2,
    "max_tokens": 0,
    "n": 1,
    "best_of": 1,
    "stop": "x",
}
ASKS = {
    "chat": (ChatCompletions().ask, CHAT),
    "completions": (Completions().ask, COMPLETION),
    "responses": (Responses().ask, RESPONSE),
    "messages": (Messages().ask, MESSAGES),
    "count": (lambda f, s: anthropic.count_tokens(s, f), MESSAGES),
    "ollama": (OllamaChat().ask, OLLAMA),
    "generate": (OllamaGenerate().ask, GENERATE),
    "show": (lambda f, s: ollama_info.show(s, f), {"model": "fake", "verbose": True}),
    "tokenize": (lambda f, s: tokens.tokenize(s, f), {"content": "a", "add_special": True}),
    "detokenize": (lambda f, s: tokens.detokenize(s, f), {"tokens": [1, 5]}),
    "template": (lambda f, s: tokens.apply_template(s, f), CHAT),
}
ODD = [None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "x", "\ud800", "\0"]
ODD += [[], {}, [None], [[]], {"": None}, {"type": "object"}, ["a"] * 3, "y" * 5000, [1] * 300]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[served.Served]:
    folder = tmp_path_factory.mktemp("served")
    TOKENIZER.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, EOS]}))
    sizes = dict.fromkeys(
        ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"), 8
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "manifest_sha256", lambda path: "0" * 64)
        use_fake_library(patch, model=manifest().model | sizes, max_context=4000)
        with Engine(folder) as engine:
            yield served.Served(engine)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a body has values, itself among them."""
    yield at
    listed = dict(enumerate(value)) if isinstance(value, list) else value
    for key, part in listed.items() if isinstance(listed, dict) else ():
        yield from places(part, (*at, key))


def changed(body: Any, draw: random.Random) -> Any:
    """The body with one to three of its values replaced, gone, or twice there."""
    made = copy.deepcopy(body)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.choice(list(places(made)))
        if not at:
            continue
        holder = made
        for key in at[:-1]:
            holder = holder[key]
        if draw.random() < 0.2 and isinstance(holder, dict):
            del holder[at[-1]]
        else:
            holder[at[-1]] = copy.deepcopy(draw.choice(ODD))
    return made


@pytest.mark.parametrize("name", ASKS)
def test_no_body_is_our_mistake(model, name):
    ask, body = ASKS[name]
    draw = random.Random(name)
    ask(Fields(copy.deepcopy(body)), model)
    for _ in range(150):
        sent = changed(body, draw)
        try:
            ask(Fields(sent), model)
        except Exception as error:
            assert api_error(error).status < 500, (sent, error)
