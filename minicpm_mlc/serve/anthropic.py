"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's API."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.prompt.conversation import (
    Chat,
    check_turns,
    read_content,
    tool_of,
    unlike,
)
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.prompt.tools import Call, Tool, Turn
from minicpm_mlc.runtime_py.collected import Answer, Choice
from minicpm_mlc.runtime_py.events import (
    Counts,
    Ended,
    Event,
    Reasoning,
    Started,
    Text,
    ToolArguments,
    ToolCall,
)
from minicpm_mlc.serve.drawing import IGNORED, cleaned, read_stops
from minicpm_mlc.serve.errors import ANTHROPIC
from minicpm_mlc.serve.served import Drawing, Served
from minicpm_mlc.serve.surface import Ask, Json, NamedEvents, ask_of, new_id, server_sent

UNUSED = frozenset("context_management container mcp_servers output_config betas".split())
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Messages(NamedEvents):
    """The surface."""

    name = "messages"
    ping = server_sent({"type": "ping"}, "ping")
    errors = ANTHROPIC

    def ask(self, fields: Fields, served: Served) -> Ask:
        """The request of a body."""
        served.check_model(fields.text("model"))
        chat, notes = read_chat(fields, served)
        drawing = read_drawing(fields)
        id = new_id("msg_")
        return ask_of(
            fields,
            [served.chat_job(chat, drawing)],
            functools.partial(whole, served.name, id),
            functools.partial(MessageStream, served.name, id),
            IGNORED | UNUSED,
            notes,
        )


def count_tokens(served: Served, fields: Fields) -> Json:
    """The length of a conversation's prompt."""
    chat, _ = read_chat(fields, served)
    return {"input_tokens": len(served.prompt(chat).ids)}


def read_drawing(fields: Fields) -> Drawing:
    """How its tokens are drawn."""
    options = cleaned(
        {
            "max_tokens": fields.whole("max_tokens", 1),
            "temperature": fields.number("temperature", 0, 2),
            "top_p": fields.number("top_p", 0, 1),
            "top_k": fields.whole("top_k", -1),
        }
    )
    return Drawing(options, read_stops(fields, "stop_sequences"))


def read_chat(fields: Fields, served: Served) -> tuple[Chat, list[str]]:
    """The conversation of a body, and which of its tools are none of this server's."""
    tools, others = _read_tools(fields)
    think, budget = _read_thinking(fields, served)
    choice = fields.object("tool_choice") or Fields({})
    chat = Chat(
        _read_turns(fields),
        think,
        budget,
        tools,
        _read_choice(fields, tools),
        most_calls=1 if choice.flag("disable_parallel_tool_use") else None,
        continues=_continues(fields),
    )
    return chat, [f"tools of the type {kind}" for kind in others]


def _read_turns(fields: Fields) -> list[Turn]:
    turns = [Turn("system", system)] if (system := read_content(fields, "system")) else []
    for message in fields.objects("messages"):
        role = message.choice("role", ("user", "assistant", "system"))
        content = message.get("content")
        blocks = message.objects("content") if isinstance(content, list) else None
        if blocks is None:
            turns.append(Turn(role or "user", message.text("content") or ""))
        elif role == "assistant":
            turns.append(_assistant(blocks))
        else:
            turns += _user(blocks, role or "user")
    check_turns(turns)
    return turns


def _assistant(blocks: list[Fields]) -> Turn:
    texts, calls = [], []
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            texts.append(block.text("text") or "")
        elif kind == "tool_use":
            given = block.object("input")
            calls.append(Call(str(block.need("name")), given.values if given else {}))
        elif kind not in ("thinking", "redacted_thinking"):  # templates leave thinking out
            raise _no_text(kind)
    return Turn("assistant", "".join(texts), tuple(calls))


def _user(blocks: list[Fields], role: str) -> list[Turn]:
    """Results of tools first, as messages of their own; then what else there is."""
    results, texts = [], []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            results.append(Turn("tool", read_content(block)))
        elif kind == "text":
            texts.append(block.text("text") or "")
        else:
            raise _no_text(kind)
    return [*results, *([Turn(role, "".join(texts))] if texts or not results else [])]


def _no_text(kind: object) -> FieldError:
    return FieldError(
        f"content has a block of the type {str(kind)[:40]!r}; this model takes text only"
    )


def _read_tools(fields: Fields) -> tuple[list[Tool], list[str]]:
    tools, others = [], []
    for entry in fields.objects("tools"):
        kind = entry.get("type")
        if kind in (None, "custom"):
            tools.append(tool_of(entry, "input_schema"))
        else:
            others.append(str(kind)[:40])
    return unlike(tools), others


def _read_choice(fields: Fields, tools: list[Tool]) -> str:
    given = fields.object("tool_choice")
    if given is None:
        return "auto"
    kind = given.choice("type", (*CHOICES, "tool")) or "auto"
    choice = f"={given.need('name')}" if kind == "tool" else CHOICES[kind]
    if choice not in ("auto", "none") and not tools:
        raise FieldError("tool_choice asks for a call and there are no tools", "tool_choice")
    return choice


def _read_thinking(fields: Fields, served: Served) -> tuple[bool | None, int | None]:
    """Whether to think, and for how many tokens at most. Clients ask for it without knowing the
    model: one that can't think answers at once.
    """
    given = fields.object("thinking")
    kind = given.choice("type", ("enabled", "disabled", "adaptive")) if given else None
    if given is None or kind is None:
        return None, None
    switch = {"enabled": True, "disabled": False}.get(kind) if served.thinks else None
    return switch, given.whole("budget_tokens", 0)


def _continues(fields: Fields) -> bool:
    """An assistant's message at the end is the beginning of the answer."""
    messages = fields.items("messages") or []
    last = messages[-1] if messages else None
    return isinstance(last, dict) and last.get("role") == "assistant" and len(messages) > 1


def stop_reason(choice: Choice) -> str:
    """Anthropic's word for the end."""
    if choice.called:
        return "tool_use"
    if choice.stop is not None:
        return "stop_sequence"
    return "max_tokens" if choice.reason in ("length", "context") else "end_turn"


def usage_of(counts: Counts) -> dict[str, int]:
    """The counts; cached tokens are no part of the input here."""
    return {
        "input_tokens": counts.prompt_tokens - counts.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached_tokens,
        "output_tokens": counts.completion_tokens,
    }


def _message(name: str, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def whole(name: str, id: str, answer: Answer) -> Json:
    """The answer in one object."""
    choice = answer.choices[0]
    content: list[dict[str, Any]] = []
    if choice.reasoning:
        content.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
    if choice.text:
        content.append({"type": "text", "text": choice.text})
    for tool, arguments in choice.calls:
        content.append(_tool_use(tool) | {"input": json.loads(arguments)})
    return _message(name, id) | {
        "content": content,
        "stop_reason": stop_reason(choice),
        "stop_sequence": choice.stop,
        "usage": usage_of(answer.counts),
    }


def _tool_use(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": new_id("toolu_"), "name": name, "input": {}}


class MessageStream:
    """The events of a stream. A block is open until another one begins."""

    def __init__(self, name: str, id: str) -> None:
        self._message = _message(name, id)
        self._answer = Answer()
        self._index = -1
        self._kind = ""  # of the open block

    def feed(self, event: Event) -> Iterator[Json]:
        """The events that this one makes."""
        self._answer.feed(event)
        if isinstance(event, Started):
            usage = usage_of(Counts(event.prompt_tokens, event.cached_tokens))
            yield {"type": "message_start", "message": {**self._message, "usage": usage}}
        elif isinstance(event, Reasoning):
            yield from self._open({"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": event.text})
        elif isinstance(event, Text) and event.text:
            yield from self._open({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": event.text})
        elif isinstance(event, ToolCall):
            yield from self._close()
            yield from self._open(_tool_use(event.name))
        elif isinstance(event, ToolArguments):
            yield self._delta({"type": "input_json_delta", "partial_json": event.text})
        elif isinstance(event, Ended):
            yield from self._end()

    def _open(self, block: dict[str, Any]) -> Iterator[Json]:
        if self._kind == block["type"]:
            return
        yield from self._close()
        self._index += 1
        self._kind = block["type"]
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[Json]:
        if not self._kind:
            return
        if self._kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        self._kind = ""
        yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _end(self) -> Iterator[Json]:
        yield from self._close()
        choice = self._answer.choices[0]
        delta = {"stop_reason": stop_reason(choice), "stop_sequence": choice.stop}
        usage = usage_of(self._answer.counts)
        yield {"type": "message_delta", "delta": delta, "usage": usage}
        yield {"type": "message_stop"}
