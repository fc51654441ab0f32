"""Each protocol's answers and streams as pure functions of events."""

from __future__ import annotations

import json

import pytest
from serving import answer, model

from minicpm_mlc.runtime_py.collected import Answer
from minicpm_mlc.runtime_py.events import (
    Counts,
    Ended,
    Reasoning,
    Scored,
    Started,
    Text,
    ToolArguments,
    ToolCall,
)
from minicpm_mlc.serve import anthropic, ollama, openai_chat, openai_completions, responses

PLAIN = answer(Reasoning(0, "hm "), Reasoning(0, "so"), Text(0, "Hi"), Text(0, " you"))
CALLS = answer(
    Reasoning(0, "hm"),
    ToolCall(0, "f"),
    ToolArguments(0, '{"a": '),
    ToolArguments(0, "1}"),
    ToolCall(0, "g"),
    ToolArguments(0, "{}"),
)
CUT = answer(Text(0, "Hi"), reason="length")


def shape(**changes):
    values = {
        "served": model(),
        "id": "id",
        "created": 5,
        "logprobs": None,
        "usage": True,
        "reasoning_field": "reasoning_content",
        "choices": 1,
    }
    return openai_chat.Shape(**(values | changes))


def chunks(stream, events):
    return [chunk for event in events for chunk in stream.feed(event)]


def deltas(found):
    return [c["choices"][0]["delta"] for c in found if c["choices"]]


def test_a_chat_in_one_object():
    said = openai_chat.whole(shape(), Answer.of(PLAIN))
    (choice,) = said["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "Hi you",
        "reasoning_content": "hm so",
    }
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert said["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 12,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 7},
    }
    assert said["timings"]["prompt_n"] == 5 and said["timings"]["predicted_per_second"] == 6.0
    cut = openai_chat.whole(shape(), Answer.of(CUT))["choices"][0]
    assert cut["finish_reason"] == "length" and "reasoning_content" not in cut["message"]


def test_a_chat_stream_has_the_form_that_every_client_reads():
    found = chunks(openai_chat.ChatStream(shape()), CALLS)
    assert deltas(found)[0] == {"role": "assistant", "content": None}
    assert deltas(found)[1] == {"reasoning_content": "hm"}
    calls = [delta["tool_calls"] for delta in deltas(found) if "tool_calls" in delta]
    (opening,) = calls[0]
    assert opening["index"] == 0 and opening["type"] == "function"
    assert opening["function"] == {"name": "f", "arguments": ""} and opening["id"]
    assert calls[1] == [{"index": 0, "function": {"arguments": '{"a": '}}]
    assert calls[2] == [{"index": 0, "function": {"arguments": "1}"}}]
    assert calls[3][0]["index"] == 1 and calls[3][0]["id"] != opening["id"]
    assert found[-2]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] == 12
    assert all(chunk["usage"] is None for chunk in found[:-1])
    assert len({(chunk["id"], chunk["created"]) for chunk in found}) == 1


def test_without_include_usage_no_chunk_has_counts():
    found = chunks(openai_chat.ChatStream(shape(usage=False)), PLAIN)
    assert all("usage" not in chunk for chunk in found) and found[-1]["choices"]


def test_several_choices_each_begin_and_end():
    counts = Counts(9, 4, 3)
    events = [Started(9, 4), Text(0, "a"), Ended(0, "stop", counts), Text(1, "b")]
    events.append(Ended(1, "length", counts))
    found = chunks(openai_chat.ChatStream(shape(choices=2)), events)
    ends = [(c["choices"][0]["index"], c["choices"][0]["finish_reason"]) for c in found[:-1]]
    assert [end for end in ends if end[1]] == [(0, "stop"), (1, "length")]
    assert found[-1]["usage"]["completion_tokens"] == 6
    assert found[-1]["usage"]["prompt_tokens"] == 9
    said = openai_chat.whole(shape(), Answer.of(events))
    assert [c["message"]["content"] for c in said["choices"]] == ["a", "b"]


def test_logprobs_of_a_chat():
    tokens = (Scored(1, -0.5, ((1, -0.5), (2, float("-inf")))),)
    events = answer(Text(0, "Hi", tokens))
    choice = openai_chat.whole(shape(logprobs=2), Answer.of(events))["choices"][0]
    (entry,) = choice["logprobs"]["content"]
    assert entry["token"] == "<1>" and entry["bytes"] == list(b"<1>")
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -9999.0]
    found = chunks(openai_chat.ChatStream(shape(logprobs=2)), events)
    assert found[1]["choices"][0]["logprobs"]["content"] == [entry]


def test_completions_repeat_the_prompt_with_its_scores():
    served = model(tokenizer=type("T", (), {"decode": staticmethod(lambda ids: "ab")}))
    made = shape(served=served, logprobs=1, choices=2)
    echo = openai_completions.Echo(made, [[3, 4], [3, 5]], 1, True)
    events = []
    for choice in range(2):
        scores = (Scored(3), Scored(4 + choice, -1.25, ((9, -0.25),)))
        tokens = (Scored(7, -2.0, ((7, -2.0),)),)
        counts = Counts(2, 0, 1)
        events += [Started(2, 0, scores, choice), Text(choice, "c", tokens)]
        events.append(Ended(choice, "length", counts))
    said = openai_completions.whole(echo, Answer.of(events))
    first, second = said["choices"]
    assert first["text"] == "abc" and second["index"] == 1
    assert second["logprobs"]["tokens"] == ["<3>", "<5>", "<7>"]
    assert second["logprobs"]["token_logprobs"] == [None, -1.25, -2.0]
    assert second["logprobs"]["top_logprobs"] == [None, {"<9>": -0.25, "<5>": -1.25}, {"<7>": -2.0}]
    assert second["logprobs"]["text_offset"] == [0, 3, 6]
    found = chunks(openai_completions.CompletionStream(echo), events)
    one = [c["choices"][0] for c in found if c["choices"] and c["choices"][0]["index"] == 1]
    assert "".join(part["text"] for part in one) == "abc" and one[-1]["finish_reason"] == "length"
    offsets = [o for part in one if part["logprobs"] for o in part["logprobs"]["text_offset"]]
    assert offsets == [0, 3, 6]


def test_responses_number_their_events_and_end_with_the_whole_answer():
    form = responses.Form(model(), "resp_1", 5, {"tools": []})
    found = chunks(responses.ResponseStream(form), PLAIN)
    assert [chunk["sequence_number"] for chunk in found] == list(range(len(found)))
    assert [chunk["type"].removeprefix("response.") for chunk in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    last = found[-1]["response"]
    assert [item["type"] for item in last["output"]] == ["reasoning", "message"]
    assert last["output"][1]["content"][0]["text"] == "Hi you"
    assert last["usage"]["output_tokens_details"] == {"reasoning_tokens": 7}
    assert responses.whole(form, Answer.of(PLAIN))["status"] == "completed"
    cut = chunks(responses.ResponseStream(form), CUT)[-1]
    assert cut["type"] == "response.incomplete"
    assert cut["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_responses_call_tools():
    form = responses.Form(model(), "resp_1", 5, {})
    output = responses.whole(form, Answer.of(CALLS))["output"]
    assert [(item["name"], item["arguments"]) for item in output[1:]] == [
        ("f", '{"a": 1}'),
        ("g", "{}"),
    ]
    found = chunks(responses.ResponseStream(form), CALLS)
    done = [c for c in found if c["type"] == "response.function_call_arguments.done"]
    assert [(c["name"], c["arguments"]) for c in done] == [("f", '{"a": 1}'), ("g", "{}")]


def test_messages_are_blocks_that_begin_and_end():
    found = chunks(anthropic.MessageStream("m", "msg_1"), CALLS)
    kinds = [chunk["type"] for chunk in found]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert found[0]["message"]["usage"]["cache_read_input_tokens"] == 4
    assert found[0]["message"]["usage"]["input_tokens"] == 5
    starts = [c["content_block"]["type"] for c in found if c["type"] == "content_block_start"]
    assert starts == ["thinking", "tool_use", "tool_use"]
    assert kinds.count("content_block_stop") == 3
    at = kinds.index("content_block_stop")
    assert found[at - 1]["delta"] == {"type": "signature_delta", "signature": ""}
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    whole = anthropic.whole("m", "msg_1", Answer.of(CALLS))
    assert whole["content"][1]["input"] == {"a": 1} and whole["stop_reason"] == "tool_use"
    assert [block["type"] for block in whole["content"]] == starts


@pytest.mark.parametrize(
    "reason, stop, said",
    [("stop", None, "end_turn"), ("stop", "X", "stop_sequence"), ("context", None, "max_tokens")],
)
def test_messages_say_why_they_end(reason, stop, said):
    whole = anthropic.whole("m", "id", Answer.of(answer(Text(0, "a"), reason=reason, stop=stop)))
    assert whole["stop_reason"] == said and whole["stop_sequence"] == stop


@pytest.mark.parametrize("key", ["message", "response"])
def test_ollama_lines(key):
    form = ollama.Form(model(), key, "m:latest", 0.0)
    lines = chunks(ollama.OllamaStream(form), PLAIN)
    texts = [line[key]["content"] if key == "message" else line[key] for line in lines]
    assert "".join(texts) == "Hi you"
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["done_reason"] == "stop" and lines[-1]["prompt_eval_count"] == 9
    assert lines[-1]["eval_duration"] == 2_000_000_000
    whole = ollama.whole(form, Answer.of(PLAIN))
    thinking = whole["message"]["thinking"] if key == "message" else whole["thinking"]
    assert thinking == "hm so" and whole["done"]


def test_ollama_sends_a_call_whole():
    form = ollama.Form(model(), "message", "m", 0.0)
    lines = chunks(ollama.OllamaStream(form), CALLS)
    calls = [c["function"] for line in lines for c in line["message"].get("tool_calls", [])]
    assert calls == [
        {"index": 0, "name": "f", "arguments": {"a": 1}},
        {"index": 1, "name": "g", "arguments": {}},
    ]
    assert lines[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("events", [PLAIN, CALLS, CUT], ids=["plain", "calls", "cut"])
def test_all_that_is_streamed_is_json(events):
    form = ollama.Form(model(), "message", "m", 0.0)
    streams = [
        openai_chat.ChatStream(shape()),
        responses.ResponseStream(responses.Form(model(), "r", 5, {})),
        anthropic.MessageStream("m", "id"),
        ollama.OllamaStream(form),
    ]
    for stream in streams:
        for chunk in chunks(stream, events):
            json.dumps(chunk, allow_nan=False)


def test_an_answer_that_failed_raises_its_error():
    from minicpm_mlc.runtime_py.events import Failed

    with pytest.raises(ValueError, match="broken"):
        Answer.of([Started(1, 0), Failed(ValueError("broken"))])
