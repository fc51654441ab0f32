"""POST /v1/chat/completions."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm_mlc import __version__
from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.prompt.conversation import Chat, tool_choice_of, turns_of
from minicpm_mlc.prompt.fields import Fields
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
from minicpm_mlc.serve.block_map import BlockMap
from minicpm_mlc.serve.drawing import IGNORED, MOST_LIKELY, read_drawing
from minicpm_mlc.serve.logprobs import chat_logprobs
from minicpm_mlc.serve.messages import read_most_calls, read_schema, read_tools
from minicpm_mlc.serve.served import Served
from minicpm_mlc.serve.surface import Ask, Json, Surface, ask_of, new_id

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
FINISH = {"stop": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Shape:
    """What all parts of one answer share, and what was asked to be in it."""

    served: Served
    id: str
    created: int
    logprobs: int | None
    usage: bool  # a stream ends with the counts
    reasoning_field: str
    choices: int
    blocks: BlockMap | None = None

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that each object begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": f"minicpm-mlc-{__version__}",
        }

    def block_reads(self, reads: Sequence[int]) -> dict[str, Any]:
        """The field of a choice that read sparsely, where it was asked for."""
        found = self.blocks and self.blocks.of(reads)
        return {"block_reads": found} if found else {}


class ChatCompletions(Surface):
    """The surface. An error in a stream has no [DONE] behind it: the official client raises."""

    name = "chat"
    done = b"data: [DONE]\n\n"

    def __init__(self, reasoning_field: str = "reasoning_content") -> None:
        self._reasoning_field = reasoning_field

    def ask(self, fields: Fields, served: Served) -> Ask:
        """The request of a body."""
        served.check_model(fields.text("model"))
        chat = read_chat(fields)
        longest = fields.whole("max_completion_tokens", 1)
        shorter = fields.whole("max_tokens", 1)
        limit = shorter if longest is None else longest
        drawing = read_drawing(fields, limit, _likely(fields))
        job = served.chat_job(chat, drawing)
        shape = Shape(
            served,
            new_id("chatcmpl-", 22),
            int(time.time()),
            drawing.logprobs,
            wants_usage(fields),
            self._reasoning_field,
            drawing.n,
            BlockMap(served, job.token_ids) if fields.flag("block_reads") else None,
        )
        return ask_of(
            fields,
            [job],
            functools.partial(whole, shape),
            functools.partial(ChatStream, shape),
            IGNORED,
        )


def wants_usage(fields: Fields) -> bool:
    """Whether a stream ends with the counts."""
    options = fields.object("stream_options")
    return bool(options and options.flag("include_usage"))


def read_chat(fields: Fields) -> Chat:
    """The conversation of a body."""
    fields.refuse("audio", "web_search_options", why="this model takes and gives text alone")
    if set(fields.items("modalities") or ["text"]) != {"text"}:
        raise fields.wrong("modalities", '["text"]')
    tools = read_tools(fields)
    return Chat(
        turns_of(fields.objects("messages")),
        read_think(fields),
        read_budget(fields),
        tools,
        tool_choice_of(fields, tools),
        read_schema(fields.object("response_format")),
        read_most_calls(fields),
        _continues(fields),
    )


def _likely(fields: Fields) -> int | None:
    count = fields.whole("top_logprobs", 0, MOST_LIKELY)
    if not fields.flag("logprobs"):
        if count:
            raise FieldError("top_logprobs needs logprobs: true", "top_logprobs")
        return None
    return count or 0


def read_think(fields: Fields) -> bool | None:
    """Whether to think: the template's own switch goes before the effort."""
    switch = fields.flag("enable_thinking")
    if kwargs := fields.object("chat_template_kwargs"):
        inner = kwargs.flag("enable_thinking")
        switch = switch if inner is None else inner
        if other := kwargs.unread():
            raise FieldError(
                f"chat_template_kwargs.{other[0]} is none of this server's; it passes "
                "enable_thinking",
                "chat_template_kwargs",
            )
    effort = fields.choice("reasoning_effort", EFFORTS)
    if switch is None and effort in ("none", "minimal"):
        return False
    return switch


def read_budget(fields: Fields) -> int | None:
    """The most tokens of thinking; None: any number."""
    first = fields.whole("reasoning_budget", -1)
    budget = fields.whole("thinking_budget", -1) if first is None else first
    return None if budget == -1 else budget


def _continues(fields: Fields) -> bool:
    fields.flag("add_special_tokens")
    wanted = fields.flag("continue_final_message")
    prompted = fields.flag("add_generation_prompt")
    if not wanted and prompted is not False:
        return False
    last = (fields.items("messages") or [{}])[-1]
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise FieldError(
            "the last message is not the assistant's, so it can't be continued", "messages"
        )
    return True


def usage_of(counts: Counts) -> dict[str, Any]:
    """OpenAI's counts."""
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
    }


def timings_of(counts: Counts) -> dict[str, Any]:
    """llama.cpp's times, which user interfaces show."""
    new = counts.prompt_tokens - counts.cached_tokens
    return {
        "cache_n": counts.cached_tokens,
        "prompt_n": new,
        "prompt_ms": 1e3 * counts.prompt_seconds,
        "prompt_per_second": _rate(new, counts.prompt_seconds),
        "predicted_n": counts.completion_tokens,
        "predicted_ms": 1e3 * counts.decode_seconds,
        "predicted_per_second": _rate(counts.completion_tokens, counts.decode_seconds),
        "draft_n": counts.draft_tokens,
        "draft_n_accepted": counts.draft_accepted,
    }


def finish_reason(called: bool, reason: str) -> str:
    """OpenAI's word for the end of a choice."""
    return "tool_calls" if called else FINISH.get(reason, "stop")


def whole(shape: Shape, answer: Answer) -> Json:
    """The answer in one object."""
    choices = [_whole_choice(shape, index, choice) for index, choice in answer.ordered]
    counts = answer.counts
    return {
        **shape.head("chat.completion"),
        "choices": choices,
        "usage": usage_of(counts),
        "timings": timings_of(counts),
    }


def _whole_choice(shape: Shape, index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text or (None if choice.calls or choice.reasoning else ""),
    }
    if choice.reasoning:
        message[shape.reasoning_field] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [
            _call(None, {"name": name, "arguments": arguments}) for name, arguments in choice.calls
        ]
    scored = shape.logprobs is not None
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(shape, choice.tokens) if scored else None,
        "finish_reason": finish_reason(choice.called, choice.reason),
        **shape.block_reads(choice.block_reads),
    }


def _call(index: int | None, function: dict[str, str]) -> dict[str, Any]:
    head = {} if index is None else {"index": index}
    return {**head, "id": new_id("call_"), "type": "function", "function": function}


def _logprobs(shape: Shape, tokens: Any) -> dict[str, Any]:
    content = chat_logprobs(shape.served, tokens, shape.logprobs or 0)
    return {"content": content, "refusal": None}


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0


class ChatStream:
    """The chunks of a stream. A call opens with its name and empty arguments, the fragments have
    its index alone: the one form that every known client reads.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._answer = Answer()
        self._head = shape.head("chat.completion.chunk")

    def feed(self, event: Event) -> Iterator[Json]:
        """The chunks of one event."""
        self._answer.feed(event)
        if isinstance(event, Started):
            for index in range(self._shape.choices):
                yield self._chunk(index, {"role": "assistant", "content": None})
        elif isinstance(event, Reasoning):
            yield self._chunk(event.choice, {self._shape.reasoning_field: event.text})
        elif isinstance(event, Text):
            scored = self._shape.logprobs is not None
            logprobs = _logprobs(self._shape, event.tokens) if scored else None
            yield self._chunk(event.choice, {"content": event.text}, logprobs)
        elif isinstance(event, ToolCall):
            call = _call(self._calls(event.choice) - 1, {"name": event.name, "arguments": ""})
            yield self._chunk(event.choice, {"tool_calls": [call]})
        elif isinstance(event, ToolArguments):
            part = {
                "index": self._calls(event.choice) - 1,
                "function": {"arguments": event.text},
            }
            yield self._chunk(event.choice, {"tool_calls": [part]})
        elif isinstance(event, Ended):
            yield from self._end(event)

    def _calls(self, choice: int) -> int:
        return len(self._answer.choices[choice].calls)

    def _end(self, event: Ended) -> Iterator[Json]:
        called = self._answer.choices[event.choice].called
        chunk = self._chunk(event.choice, {}, None, finish_reason(called, event.reason))
        chunk["choices"][0] |= self._shape.block_reads(event.block_reads)
        ended = sum(bool(choice.reason) for choice in self._answer.choices.values())
        if ended < self._shape.choices:
            yield chunk
            return
        counts = self._answer.counts
        yield chunk | {"timings": timings_of(counts)}
        if self._shape.usage:
            usage = {"usage": usage_of(counts), "timings": timings_of(counts)}
            yield self._head | {"choices": []} | usage

    def _chunk(
        self, index: int, delta: Json, logprobs: Json | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._shape.usage else {}
        return {**self._head, "choices": [choice], **usage}
