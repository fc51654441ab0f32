"""From tokens to events, wherever the tokens' borders lie."""

from __future__ import annotations

import pytest
from serving import Pieces, joined, read, splits

from minicpm_mlc.prompt.tool_formats import FORMATS
from minicpm_mlc.prompt.tools import Tool
from minicpm_mlc.runtime_py.chat.reader import ChatReader, TextReader
from minicpm_mlc.runtime_py.chat.tool_reader import ToolReader
from minicpm_mlc.runtime_py.events import Reasoning, Scored, Text, ToolArguments, ToolCall

WEATHER = Tool("get-weather", "", {"properties": {"city": {"type": "string"}}})
CALLS = {
    "hermes": '<tool_call>\n{"name": "get-weather", "arguments": {"city": "Köln"}}\n</tool_call>',
    "minicpm": "<|thought_start|>\nit asks\n<|thought_end|>\n<|tool_call_start|>\n```python\n"
    'get_weather(city="Köln")\n```\n<|tool_call_end|>\n',
    "minicpm5": '<function name="get-weather"><param name="city">Köln</param></function>',
}


def chat(tokenizer, **options):
    return ChatReader(0, tokenizer, [], **options)


@pytest.mark.parametrize("opened", [False, True])
def test_thinking_and_answer_are_told_apart_at_every_border(opened):
    said = "\nwhy 你\n</think>\n\nbecause <b>é</b>"
    for pieces in splits(said if opened else f"<think>{said}"):
        events = read(lambda t: chat(t, opened=opened), pieces)
        assert joined(events, Reasoning) == "why 你", pieces
        assert joined(events, Text) == "because <b>é</b>", pieces


def test_thinking_that_never_ends_is_no_answer():
    for pieces in splits("<think>on and on </thin"):
        events = read(chat, pieces)
        assert joined(events, Reasoning) == "on and on </thin" and not joined(events, Text)


def test_a_stop_string_ends_the_answer_and_not_the_thinking():
    for pieces in splits("<think>a STOP b</think>c é STOP d"):
        events = read(lambda t: chat(t, stop=["STOP"]), pieces)
        assert joined(events, Reasoning) == "a STOP b" and joined(events, Text) == "c é "


def test_the_stop_string_that_came_is_told():
    for stop in (["x", "end"], ["never"]):
        reader = TextReader(0, _Tokens([b"the e", b"nd of"]), [], stop)  # type: ignore[arg-type]
        for i in range(2):
            reader.feed(_scored(i))
        assert reader.stop == ("end" if "end" in stop else None)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_found_at_every_border(name):
    form = FORMATS[name]
    for pieces in splits(f"<think>hm</think>\n\nLet me see.\n\n{CALLS[name]}"):
        events = read(lambda t: chat(t, tools=ToolReader(0, [WEATHER], form)), pieces)
        assert joined(events, Text) == "Let me see.", pieces
        assert [e.name for e in events if isinstance(e, ToolCall)] == ["get-weather"], pieces
        assert joined(events, ToolArguments) == '{"city": "Köln"}'
        assert joined(events, Reasoning).startswith("hm")


@pytest.mark.parametrize("name", CALLS)
def test_two_calls_in_one_answer(name):
    said = CALLS[name] + "\n" + CALLS[name]
    for pieces in splits(said):
        events = read(lambda t: chat(t, tools=ToolReader(0, [WEATHER], FORMATS[name])), pieces)
        assert [type(e) for e in events if not isinstance(e, Reasoning)] == [
            ToolCall,
            ToolArguments,
        ] * 2


def test_calls_after_the_last_that_is_wanted_are_left_out():
    form = FORMATS["hermes"]
    for pieces in splits(CALLS["hermes"] * 2):
        events = read(lambda t: chat(t, tools=ToolReader(0, [WEATHER], form, most=1)), pieces)
        assert [type(e) for e in events] == [ToolCall, ToolArguments]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_call_stays_text(name):
    broken = CALLS[name].replace("get", "got")
    for pieces in splits(f"See: {broken} so"):
        events = read(lambda t: chat(t, tools=ToolReader(0, [WEATHER], FORMATS[name])), pieces)
        text = joined(events, Text)
        assert text.startswith("See:") and text.endswith("so") and "got" in text, pieces
        assert not any(isinstance(e, ToolCall) for e in events)


def test_a_call_cut_short_is_read_if_only_its_marker_is_missing():
    for pieces in splits(CALLS["hermes"].removesuffix("\n</tool_call>")):
        events = read(lambda t: chat(t, tools=ToolReader(0, [WEATHER], FORMATS["hermes"])), pieces)
        assert [e.name for e in events if isinstance(e, ToolCall)] == ["get-weather"]
    events = read(
        lambda t: chat(t, tools=ToolReader(0, [WEATHER], FORMATS["hermes"])), [b"<tool_call>\n{"]
    )
    assert joined(events, Text) == "<tool_call>\n{"


def test_every_token_of_the_answer_is_scored_once_and_none_of_the_thinking():
    for pieces in splits("<think>why</think>\n\nbecause 你 STOP no"):
        events = read(lambda t: chat(t, stop=["STOP"]), pieces, scored=True)
        scored = [s.token_id for e in events if isinstance(e, Text) for s in e.tokens]
        assert len(scored) == len(set(scored))
        said = b"".join(pieces[i] for i in scored).decode("utf-8", "replace")
        text = joined(events, Text)
        if len(pieces) > 2:  # a token a byte: exactly the answer's
            assert said == text, pieces
    for pieces in splits("plain é text"):
        events = read(lambda t: TextReader(0, t, []), pieces, scored=True)
        scored = [s.token_id for e in events if isinstance(e, Text) for s in e.tokens]
        assert scored == [i for i in range(len(pieces))]


def test_a_spent_budget_closes_the_block_once():
    reader = ChatReader(0, _Tokens([b"a ", b"b ", b"c"]), [], opened=True, most_thinking=2)  # type: ignore[arg-type]
    assert reader.forced() == ()
    reader.feed(_scored(0))
    assert reader.forced() == ()
    reader.feed(_scored(1))
    assert reader.forced() == [7, 8] and reader.forced() == ()
    assert reader.reasoning_tokens == 2


def _scored(token_id):
    return Scored(token_id)


class _Tokens(Pieces):
    def encode_middle(self, text):
        assert "</think>" in text
        return [7, 8]
