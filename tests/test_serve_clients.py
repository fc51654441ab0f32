"""The official clients against a server of the demo model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import numpy as np
import ollama
import openai
import pytest
from serving import DEMO, SUM, server

from minicpm_mlc.runtime_py.engine import Engine

ANSWER = "4827 + 356 = 5183."
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "pick", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def address(demo_bundle: Path) -> Iterator[str]:
    with server(demo_bundle) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **options: Any) -> Any:
    asked = {"model": DEMO, "messages": SUM, "temperature": 0} | options
    return client.chat.completions.create(**asked)


def test_openai_chat(client):
    said = ask(client)
    message = said.choices[0].message
    assert message.content == ANSWER and "carry" in message.reasoning_content
    assert said.choices[0].finish_reason == "stop" and said.usage.completion_tokens > 50
    assert said.usage.completion_tokens_details.reasoning_tokens > 50
    again = ask(client)
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert ask(client, reasoning_effort="none").choices[0].message.content
    assert ask(client, max_tokens=3).choices[0].finish_reason == "length"


def test_the_blocks_that_a_sparse_answer_read_are_told(client):
    notes = "".join(f"Box {i} has the number {i * 37 % 101}.\n" for i in range(90))
    long = [{"role": "user", "content": notes + SUM[0]["content"]}]
    asked = {"max_tokens": 8, "extra_body": {"block_reads": True}}
    found = ask(client, messages=long, **asked).choices[0].model_extra["block_reads"]
    assert found["tokens"] == 64 and found["first"] == 1 and sum(found["reads"]) > 0
    assert "Box 0 has" in found["texts"][0] and len(found["texts"]) <= len(found["reads"])
    streamed = list(ask(client, messages=long, stream=True, **asked))
    assert streamed[-1].choices[0].model_extra["block_reads"]["texts"] == found["texts"]
    assert "block_reads" not in ask(client, **asked).choices[0].model_extra
    assert "block_reads" not in ask(client, messages=long, max_tokens=2).choices[0].model_extra


def test_openai_stream(client):
    text, thought, usage = "", "", None
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thought += getattr(choice.delta, "reasoning_content", None) or ""
        usage = chunk.usage or usage
    assert text == ANSWER and "carry" in thought and usage.completion_tokens > 50


def test_openai_choices_and_stops(client):
    said = ask(client, n=3, temperature=1, seed=5, max_tokens=40)
    assert [choice.index for choice in said.choices] == [0, 1, 2]
    same = ask(client, temperature=1, seed=6, max_tokens=40).choices[0].message
    assert said.choices[1].message == same
    assert ask(client, stop=[" ="]).choices[0].message.content == "4827 + 356"


def test_openai_log_probabilities(client):
    said = ask(client, logprobs=True, top_logprobs=2)
    content = said.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == ANSWER
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(entry.top_logprobs[0].logprob == entry.logprob <= 0 for entry in content)


def test_openai_tools(client):
    forced = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 400}
    said = ask(client, **forced).choices[0]
    (call,) = said.message.tool_calls
    assert said.finish_reason == "tool_calls" and said.message.content is None
    assert call.function.name == "pick" and 0 <= json.loads(call.function.arguments)["n"] <= 9
    with client.chat.completions.stream(
        model=DEMO, messages=SUM, temperature=0, **forced
    ) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments
    history = [
        *SUM,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "7"},
    ]
    assert ask(client, messages=history, tools=[TOOL], max_tokens=20).choices


def test_openai_schemas(client):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    said = ask(client, response_format=form).choices[0].message
    assert 0 <= json.loads(said.content)["n"] <= 9 and said.reasoning_content
    plain = ask(client, response_format=form, extra_body={"speculate": "off"})
    assert plain.choices[0].message == said
    anything = {"response_format": {"type": "json_object"}, "reasoning_effort": "none"}
    assert ask(client, **anything, max_tokens=40).choices[0].message.content.startswith("{")
    unknown = {"name": "n", "schema": {"type": "array", "uniqueItems": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(client, response_format={"type": "json_schema", "json_schema": unknown})


def test_openai_responses(client):
    said = client.responses.create(model=DEMO, input=SUM[0]["content"], temperature=0)
    assert said.output_text == ANSWER and said.usage.output_tokens_details.reasoning_tokens
    with client.responses.stream(model=DEMO, input=SUM[0]["content"], temperature=0) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_response().output_text == ANSWER
    assert {"response.reasoning_text.delta", "response.output_text.delta"} <= kinds
    flat = {"type": "function", "name": "pick", "parameters": SCHEMA}
    call = client.responses.create(
        model=DEMO, input="7?", tools=[flat], tool_choice="required", temperature=0
    ).output[-1]
    assert call.type == "function_call" and call.name == "pick"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "7"}
    items = [{"role": "user", "content": "7?"}, call.model_dump(), result]
    assert client.responses.create(model=DEMO, input=items, tools=[flat], max_output_tokens=9)


def test_log_likelihoods_are_those_of_the_engine(client, demo_bundle):
    with Engine(demo_bundle) as engine:
        prompts = [engine.tokenize(f"The sum of 4 and 5 is {n}") for n in (9, 10)]
        expected = []
        for ids in prompts:
            logits = engine.logits(ids).astype(np.float64)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            expected.append([logits[i, t] for i, t in enumerate(ids[1:])])
    said = client.completions.create(
        model=DEMO, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    for choice, ids, wanted in zip(said.choices, prompts, expected, strict=True):
        found = choice.logprobs.token_logprobs
        assert len(found) == len(ids) + 1 and found[0] is None
        assert np.allclose(found[1:-1], wanted, atol=1e-5)
        for value, top in zip(found[1:], choice.logprobs.top_logprobs[1:], strict=True):
            assert value in top.values() and value <= max(top.values()) <= 0
            assert math.isfinite(value)


def test_anthropic_messages(address):
    client = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": DEMO, "max_tokens": 400, "messages": SUM}
    greedy: dict[str, Any] = {"extra_body": {"temperature": 0}}
    said = client.messages.create(**asked, **greedy)
    assert [block.type for block in said.content] == ["thinking", "text"]
    assert said.content[1].text == ANSWER and said.stop_reason == "end_turn"
    tool = {"name": "pick", "input_schema": SCHEMA}
    with client.messages.stream(
        **asked, **greedy, tools=[tool], tool_choice={"type": "any"}
    ) as stream:
        for _ in stream:
            pass
        call = stream.get_final_message()
    assert call.stop_reason == "tool_use" and call.content[-1].name == "pick"
    assert 0 <= call.content[-1].input["n"] <= 9
    counted = client.messages.count_tokens(model=DEMO, messages=SUM)
    assert counted.input_tokens == said.usage.input_tokens + said.usage.cache_read_input_tokens
    with pytest.raises(anthropic.BadRequestError, match="messages is empty"):
        client.messages.create(model=DEMO, max_tokens=1, messages=[])


def test_ollama(address):
    client = ollama.Client(host=address)
    assert client.list().models[0].model == DEMO
    assert "thinking" in client.show(DEMO).capabilities
    assert client.ps().models[0].context_length == 8192
    options = {"temperature": 0}
    said = client.chat(model=DEMO, messages=SUM, options=options, think=True)
    assert said.message.content == ANSWER and "carry" in said.message.thinking
    assert said.eval_count > 50 and said.done_reason == "stop"
    parts = list(client.chat(model=DEMO, messages=SUM, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == ANSWER and parts[-1].done
    text = client.generate(model=DEMO, prompt=SUM[0]["content"], options=options, think=False)
    assert text.response and not text.thinking
    shaped = client.generate(model=DEMO, prompt="n?", format=SCHEMA, options=options, think=False)
    assert 0 <= json.loads(shaped.response)["n"] <= 9
    with pytest.raises(ollama.ResponseError) as refused:
        client.embed(model=DEMO, input="x")
    assert refused.value.status_code == 501


def test_a_key_and_a_name_are_asked_for(demo_bundle):
    with server(demo_bundle, "--api-key", "secret", "--strict-model", "--name", "mine") as address:
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        right = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        assert right.models.list().data[0].id == "mine"
        with pytest.raises(openai.NotFoundError, match="mine"):
            ask(right)
        assert ask(right, model="mine").choices[0].message.content == ANSWER


def test_what_was_read_is_there_after_a_restart(demo_bundle, tmp_path):
    long = [{"role": "user", "content": "Remember: the password is tiger. " * 20}]
    options = ("--state", str(tmp_path / "state"))
    cached = []
    for _ in range(2):
        with server(demo_bundle, *options) as address:
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            said = ask(client, messages=long, max_tokens=4)
            cached.append(said.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] < 64 < cached[1]


def test_the_end_of_the_server_ends_a_stream(demo_bundle):
    with server(demo_bundle, "--grace", "1") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        endless = {"ignore_eos": True, "speculate": "off"}
        stream = ask(client, stream=True, n=8, extra_body=endless)
        next(stream)
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        for _ in stream:
            pass
