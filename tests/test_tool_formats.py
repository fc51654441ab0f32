"""How calls are written, read and forced, in each format."""

from __future__ import annotations

import llguidance
import pytest
from tiny_tokenizers import sentencepiece

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.prompt.tool_formats import FORMATS
from minicpm_mlc.prompt.tool_formats.minicpm import identifiers
from minicpm_mlc.prompt.tools import Call, Tool, Turn, arguments_of, plain_messages

WEATHER = Tool(
    "get-weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name."},
            "days": {"type": "integer"},
            "class": {"type": "string", "enum": ["a", "b"]},
            "exact": {"$ref": "#/$defs/flag"},
        },
        "required": ["city"],
        "$defs": {"flag": {"type": "boolean"}},
    },
)
NOW = Tool("now")
TOOLS = [WEATHER, NOW]
CALLS = [
    Call("get-weather", {"city": 'A "b" & <c>\\n', "days": 3, "class": "a", "exact": True}),
    Call("get-weather", {"city": "Köln"}),
    Call("now", {}),
]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("call", CALLS, ids=["all", "some", "none"])
def test_what_is_written_is_read_again(form, call):
    written = form.assistant("", [call])
    assert form.parse(written.strip(), TOOLS) == [call]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("call", CALLS[1:], ids=["some", "none"])
def test_what_is_written_follows_the_grammar(form, call):
    grammar = f"start: call\n{form.grammar(TOOLS)}"
    tokenizer = llguidance.LLTokenizer(sentencepiece().to_str(), eos_token=[2])
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.tokenize_str(form.assistant("", [call]).strip())
    assert matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_prompt_names_the_tools_and_past_calls(form):
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "Weather?"),
        Turn("assistant", "", (CALLS[1],)),
        Turn("tool", '{"sun": true}'),
        Turn("tool", "again"),
    ]
    messages = plain_messages(turns, TOOLS, form)
    assert messages[0]["role"] == "system" and messages[0]["content"].startswith("Be brief.")
    assert "The weather of a city." in messages[0]["content"]
    assert "Köln" in messages[2]["content"]
    assert "sun" in messages[3]["content"] and "again" in messages[-1]["content"]
    assert all(set(message) == {"role", "content"} for message in messages)
    alone = plain_messages([Turn("user", "x")], TOOLS, form)
    assert [message["role"] for message in alone] == ["system", "user"]
    assert plain_messages([Turn("user", "x")], [], form) == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "name, text",
    [
        ("hermes", "<tool_call>{}</tool_call>"),
        ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": []}</tool_call>'),
        ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>"),
        ("minicpm", "<|tool_call_start|>\nnow(1)\n<|tool_call_end|>"),
        ("minicpm", "<|tool_call_start|>\nnow(a=f())\n<|tool_call_end|>"),
        ("minicpm", "<|tool_call_start|>\nnow(a=b)\n<|tool_call_end|>"),
        ("minicpm", "<|tool_call_start|>\nother()\n<|tool_call_end|>"),
        ("minicpm", "<|tool_call_start|>\nnow(**{})\n<|tool_call_end|>"),
        ("minicpm", "<|tool_call_start|>\nnow(\n<|tool_call_end|>"),
        ("minicpm", "<|tool_call_start|>\nimport os\n<|tool_call_end|>"),
        ("minicpm", "<|tool_call_start|>\n<|tool_call_end|>"),
        ("minicpm", "<|tool_call_start|>" + "(" * 100_000 + "<|tool_call_end|>"),
        ("minicpm5", '<function name="other"></function>'),
        ("minicpm5", '<function name="get-weather"></function>'),
        ("minicpm5", '<function name="now"><param name="x">1</param></function>'),
        ("minicpm5", '<function name="get-weather">Köln</function>'),
    ],
)
def test_what_is_no_call_is_none(name, text):
    assert FORMATS[name].parse(text, TOOLS) is None


def test_constants_of_json_and_lines_are_read_as_python():
    text = '<|tool_call_start|>```python\nget_weather(city="```\\n- x", exact=true)\n```'
    (call,) = FORMATS["minicpm"].parse(f"{text}\n<|tool_call_end|>", TOOLS) or []
    assert call.arguments == {"city": "```\n- x", "exact": True}


def test_names_get_identifiers_one_to_one():
    names = ["a-b", "a_b", "class", "1x", "ok"]
    found = identifiers(names)
    assert len(set(found.values())) == 5 and all(n.isidentifier() for n in found.values())
    assert found["ok"] == "ok" and found["class"] == "class_"


def test_arguments_of_past_calls_must_be_objects():
    assert arguments_of('{"a": 1}') == {"a": 1} and arguments_of("") == {}
    for text in ("[1]", "{", "1", "[" * 100_000):
        with pytest.raises(TemplateError, match="expected a JSON object"):
            arguments_of(text)
