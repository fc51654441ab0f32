"""POST /v1/responses: what Codex and SDKs need of it. Nothing is stored."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.prompt.conversation import (
    ROLES,
    Chat,
    check_turns,
    read_content,
    tool_choice_of,
    tool_of,
    unlike,
)
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.prompt.tools import Call, Tool, Turn, arguments_of
from minicpm_mlc.runtime_py.collected import Answer
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
from minicpm_mlc.serve.drawing import IGNORED, read_drawing
from minicpm_mlc.serve.errors import ApiError
from minicpm_mlc.serve.messages import read_most_calls, read_schema
from minicpm_mlc.serve.openai_chat import EFFORTS
from minicpm_mlc.serve.served import Served
from minicpm_mlc.serve.surface import Ask, Json, NamedEvents, ask_of, new_id

TEXTS = ("input_text", "output_text", "text")
UNUSED = frozenset("include background truncation prompt max_tool_calls client_metadata".split())
LIMITS = ("length", "context")


@dataclass(frozen=True)
class Form:
    """What every copy of the response object has."""

    served: Served
    id: str
    created: int
    asked: Mapping[str, Any]  # tools, tool_choice and the like, as they came

    def response(
        self, status: str, output: Sequence[Json] = (), counts: Counts | None = None
    ) -> dict[str, Any]:
        """The object; with counts it is complete."""
        cut = status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if counts else None,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "error": None,
            "model": self.served.name,
            "output": list(output),
            **self.asked,
            "usage": usage_of(counts) if counts else None,
        }


class Responses(NamedEvents):
    """The surface."""

    name = "responses"

    def ask(self, fields: Fields, served: Served) -> Ask:
        """The request of a body."""
        served.check_model(fields.text("model"))
        fields.refuse("previous_response_id", "conversation", why="this server stores nothing")
        chat, notes = read_response(fields)
        drawing = read_drawing(fields, fields.whole("max_output_tokens", 1), None)
        form = Form(served, new_id("resp_"), int(time.time()), repeated(fields))
        return ask_of(
            fields,
            [served.chat_job(chat, drawing)],
            functools.partial(whole, form),
            functools.partial(ResponseStream, form),
            IGNORED | UNUSED,
            notes,
        )

    def error_frame(self, error: ApiError) -> bytes:
        """An event of the type error."""
        return self.frame(
            {"type": "error", "message": error.message, "code": error.kind, "param": None}
        )


def repeated(fields: Fields) -> Json:
    """What every copy of the response repeats of the request, as it came."""
    given = fields.values
    return {
        "instructions": fields.text("instructions"),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools") or [],
        "temperature": given.get("temperature"),
        "top_p": given.get("top_p"),
        "max_output_tokens": given.get("max_output_tokens"),
        "metadata": given.get("metadata") or {},
        "text": given.get("text") or {"format": {"type": "text"}},
        "reasoning": given.get("reasoning") or {"effort": None, "summary": None},
    }


def read_response(fields: Fields) -> tuple[Chat, list[str]]:
    """The conversation of a body, and which of its tools are none of this server's."""
    turns = read_input(fields)
    if instructions := fields.text("instructions"):
        turns = [Turn("system", instructions), *turns]
    check_turns(turns)
    tools, others = read_flat_tools(fields)
    reasoning = fields.object("reasoning")
    effort = reasoning.choice("effort", EFFORTS) if reasoning else None
    text = fields.object("text")
    chat = Chat(
        turns,
        False if effort in ("none", "minimal") else None,
        tools=tools,
        tool_choice=tool_choice_of(fields, tools),
        schema=read_schema(text.object("format") if text else None),
        most_calls=read_most_calls(fields),
    )
    return chat, [f"tools of the type {kind}" for kind in others]


def read_flat_tools(fields: Fields) -> tuple[list[Tool], list[str]]:
    """Functions, whose fields stand beside their type; and the types of all other tools."""
    tools, others = [], []
    for entry in fields.objects("tools"):
        if entry.get("type") == "function":
            tools.append(tool_of(entry))
        else:
            others.append(str(entry.get("type"))[:40])
    return unlike(tools), others


def read_input(fields: Fields) -> list[Turn]:
    """The conversation: a text, or items. Calls that follow each other are one message's."""
    given = fields.need("input")
    if isinstance(given, str):
        return [Turn("user", given)]
    turns: list[Turn] = []
    for item in fields.objects("input"):
        kind = item.get("type") or "message"
        if kind == "function_call":
            call = Call(str(item.need("name")), arguments_of(item.text("arguments") or ""))
            last = turns.pop() if turns and turns[-1].role == "assistant" else None
            before = last or Turn("assistant", "")
            turns.append(Turn("assistant", before.content, (*before.calls, call)))
        elif kind == "function_call_output":
            turns.append(Turn("tool", read_content(item, "output", TEXTS)))
        elif kind == "message":
            role = item.choice("role", ROLES) or "user"
            turns.append(Turn(ROLES[role], read_content(item, "content", TEXTS)))
        elif kind != "reasoning":
            raise FieldError(f"input has an item of the type {str(kind)[:40]!r}", "input")
    return turns


def usage_of(counts: Counts) -> dict[str, Any]:
    """The counts in this API's words."""
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": counts.cached_tokens},
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
    }


def whole(form: Form, answer: Answer) -> Json:
    """The answer in one object: that of the stream's last event."""
    stream = ResponseStream(form)
    choice = answer.choices[0]
    events: list[Event] = list(answer.started.values())
    if choice.reasoning:
        events.append(Reasoning(0, choice.reasoning))
    if choice.text:
        events.append(Text(0, choice.text))
    for name, arguments in choice.calls:
        events += [ToolCall(0, name), ToolArguments(0, arguments)]
    events.append(Ended(0, choice.reason, choice.counts))
    return [chunk for event in events for chunk in stream.feed(event)][-1]["response"]


class ResponseStream:
    """The events of a stream, numbered from 0. An item is open until another one begins."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._number = -1
        self._output: list[dict[str, Any]] = []  # finished items
        self._item: dict[str, Any] | None = None
        self._text = ""

    def feed(self, event: Event) -> Iterator[Json]:
        """The events that this one makes."""
        if isinstance(event, Started):
            yield self._event("created", response=self._form.response("in_progress"))
            yield self._event("in_progress", response=self._form.response("in_progress"))
        elif isinstance(event, Reasoning):
            yield from self._piece("reasoning", "reasoning_text", event.text)
        elif isinstance(event, Text) and event.text:
            yield from self._piece("message", "output_text", event.text)
        elif isinstance(event, ToolCall):
            yield from self._open("function_call", event.name)
        elif isinstance(event, ToolArguments):
            self._text += event.text
            yield self._about_item("function_call_arguments.delta", delta=event.text)
        elif isinstance(event, Ended):
            yield from self._end(event)

    def _end(self, event: Ended) -> Iterator[Json]:
        cut = event.reason in LIMITS
        yield from self._close("incomplete" if cut else "completed")
        status = "incomplete" if cut else "completed"
        yield self._event(status, response=self._form.response(status, self._output, event.counts))

    def _piece(self, kind: str, part: str, text: str) -> Iterator[Json]:
        if self._item is None or self._item["type"] != kind:
            yield from self._open(kind)
        self._text += text
        more = {"logprobs": []} if part == "output_text" else {}
        yield self._about_item(f"{part}.delta", content_index=0, delta=text, **more)

    def _open(self, kind: str, name: str = "") -> Iterator[Json]:
        yield from self._close("completed")
        self._item = _new_item(kind, name)
        self._text = ""
        yield self._item_event("added", self._item)
        if kind == "message":
            yield self._about_item("content_part.added", content_index=0, part=_part(""))

    def _close(self, status: str) -> Iterator[Json]:
        item, text = self._item, self._text
        if item is None:
            return
        item["status"] = status
        if item["type"] == "reasoning":
            item["content"] = [{"type": "reasoning_text", "text": text}]
            yield self._about_item("reasoning_text.done", content_index=0, text=text)
        elif item["type"] == "message":
            item["content"] = [_part(text)]
            yield self._about_item("output_text.done", content_index=0, text=text, logprobs=[])
            yield self._about_item("content_part.done", content_index=0, part=_part(text))
        else:
            item["arguments"] = text
            yield self._about_item(
                "function_call_arguments.done", arguments=text, name=item["name"]
            )
        yield self._item_event("done", item)
        self._output.append(item)
        self._item = None

    def _item_event(self, what: str, item: Json) -> Json:
        index = len(self._output)
        return self._event(f"output_item.{what}", output_index=index, item=dict(item))

    def _about_item(self, kind: str, **values: Any) -> Json:
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": len(self._output)}
        return self._event(kind, **place, **values)

    def _event(self, kind: str, **values: Any) -> Json:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number, **values}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _new_item(kind: str, name: str) -> dict[str, Any]:
    if kind == "reasoning":
        item = {"id": new_id("rs_"), "type": kind, "summary": [], "content": []}
    elif kind == "message":
        item = {"id": new_id("msg_"), "type": kind, "role": "assistant", "content": []}
    else:
        names = {"call_id": new_id("call_"), "name": name, "arguments": ""}
        item = {"id": new_id("fc_"), "type": kind, **names}
    return {**item, "status": "in_progress"}
