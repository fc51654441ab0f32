"""Ollama's API: POST /api/chat and /api/generate."""

from __future__ import annotations

import datetime
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.prompt.conversation import Chat, turns_of
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.prompt.tools import Turn
from minicpm_mlc.runtime_py.collected import Answer, Choice
from minicpm_mlc.runtime_py.events import (
    Counts,
    Ended,
    Event,
    Reasoning,
    Text,
    ToolCall,
)
from minicpm_mlc.serve.drawing import MOST_LIKELY, cleaned, read_stops
from minicpm_mlc.serve.errors import OLLAMA
from minicpm_mlc.serve.logprobs import chat_logprobs
from minicpm_mlc.serve.messages import read_tools
from minicpm_mlc.serve.served import Drawing, Served
from minicpm_mlc.serve.surface import Ask, Json, Surface, ask_of, dumps, new_id

UNUSED = frozenset("keep_alive truncate shift context".split())
UNUSED_OPTIONS = frozenset(
    "num_batch num_gpu main_gpu use_mmap use_mlock num_thread num_keep numa low_vram vocab_only "
    "draft_num_predict typical_p repeat_last_n tfs_z mirostat mirostat_eta mirostat_tau "
    "penalize_newline f16_kv".split()
)
LEVELS = ("low", "medium", "high", "max")


@dataclass(frozen=True)
class Form:
    """What the lines of one answer share."""

    served: Served
    key: str  # "message" of a chat, "response" of generate
    model: str  # as it was asked for
    begun: float
    logprobs: int | None = None

    def line(self, text: str = "", **more: Any) -> dict[str, Any]:
        """A line with a piece of the answer."""
        head = {"model": self.model, "created_at": now()}
        if self.key == "response":
            return {**head, "response": text, **more, "done": False}
        logprobs = {"logprobs": more.pop("logprobs")} if "logprobs" in more else {}
        message = {"role": "assistant", "content": text, **more}
        return {**head, "message": message, **logprobs, "done": False}

    def last(self, reason: str, counts: Counts | None) -> dict[str, Any]:
        """What the last line has beside its text."""
        end: dict[str, Any] = {"done": True, "done_reason": reason}
        if counts:
            end |= {
                "total_duration": _nanoseconds(time.perf_counter() - self.begun),
                "load_duration": 0,
                "prompt_eval_count": counts.prompt_tokens,
                "prompt_eval_duration": _nanoseconds(counts.prompt_seconds),
                "eval_count": counts.completion_tokens,
                "eval_duration": _nanoseconds(counts.decode_seconds),
            }
        return end


class OllamaSurface(Surface):
    """What /api/chat and /api/generate share: lines of JSON. An error is a stream's last one."""

    name = "ollama"
    media_type = "application/x-ndjson"
    ping = b""
    errors = OLLAMA

    def frame(self, chunk: Json) -> bytes:
        """One line."""
        return (dumps(chunk) + "\n").encode()


class OllamaChat(OllamaSurface):
    """POST /api/chat."""

    def ask(self, fields: Fields, served: Served) -> Ask:
        """The request of a body."""
        form = _form(fields, served, "message")
        if not fields.items("messages"):
            return _load(fields, form)
        messages = fields.objects("messages")
        for message in messages:
            message.refuse("images", why="this model takes text only")
        tools = read_tools(fields)
        think = read_think(fields, served)
        drawing, notes = read_options(fields, served)
        chat = Chat(turns_of(messages), think, None, tools, schema=_format(fields))
        return _ask(fields, served.chat_job(chat, drawing), form, notes)


class OllamaGenerate(OllamaSurface):
    """POST /api/generate."""

    def ask(self, fields: Fields, served: Served) -> Ask:
        """The request of a body."""
        form = _form(fields, served, "response")
        fields.refuse("template", why="the bundle has one; messages go to /api/chat")
        fields.refuse("suffix", why="this model has no documented format for it")
        fields.refuse("images", why="this model takes text only")
        prompt, system = fields.text("prompt") or "", fields.text("system")
        if not prompt:
            return _load(fields, form)
        think = read_think(fields, served)
        drawing, notes = read_options(fields, served)
        schema = _format(fields)
        if fields.flag("raw"):
            if schema is not None:
                raise FieldError("format can't be used with raw", "format")
            return _ask(fields, served.text_job(served.tokens(prompt), drawing), form, notes)
        turns = [*([Turn("system", system)] if system else []), Turn("user", prompt)]
        chat = Chat(turns, think, schema=schema)
        return _ask(fields, served.chat_job(chat, drawing), form, notes)


def read_think(fields: Fields, served: Served) -> bool | None:
    """Whether to think: true, false, or a level."""
    think = fields.get("think")
    if think not in (None, True, False, *LEVELS):
        raise fields.wrong("think", "true, false, " + ", ".join(LEVELS))
    if think and not served.thinks:
        raise FieldError(f'"{served.name}" does not support thinking', "think")
    return None if think is None else bool(think)


def read_options(fields: Fields, served: Served) -> tuple[Drawing, list[str]]:
    """The drawing, and which options are none of this server's."""
    options = fields.object("options") or Fields({})
    context = options.whole("num_ctx", 0)
    if context is not None and context > served.context:
        raise FieldError(
            f"options.num_ctx is {context} and the context holds {served.context}; start the "
            "server with a larger --context",
            "options",
        )
    limit = options.whole("num_predict", -2)
    given = cleaned(
        {
            "max_tokens": limit if limit is not None and limit > 0 else None,
            "temperature": options.number("temperature", 0, 100),
            "top_k": options.whole("top_k", -1),
            "top_p": options.number("top_p", 0, 1),
            "min_p": options.number("min_p", 0, 1),
            "repetition_penalty": options.number("repeat_penalty", 0, 100) or None,
            "presence_penalty": options.number("presence_penalty", -2, 2),
            "frequency_penalty": options.number("frequency_penalty", -2, 2),
            "seed": options.whole("seed", -(2**63), 2**64 - 1),
        }
    )
    drawing = Drawing(given, read_stops(options, "stop"), logprobs=_likely(fields))
    return drawing, [f"options.{name}" for name in options.unread(UNUSED_OPTIONS)]


def _likely(fields: Fields) -> int | None:
    count = fields.whole("top_logprobs", 0, MOST_LIKELY)
    return (count or 0) if fields.flag("logprobs") else None


def _format(fields: Fields) -> dict[str, Any] | None:
    form = fields.get("format")
    if isinstance(form, dict):
        return form
    if form not in (None, "", "json"):
        raise fields.wrong("format", '"json" or a schema')
    return {"type": "object"} if form == "json" else None


def _form(fields: Fields, served: Served, key: str) -> Form:
    name = fields.text("model") or served.name
    served.check_model(name)
    likely = fields.whole("top_logprobs", 0, MOST_LIKELY) or 0
    scored = likely if fields.flag("logprobs") else None
    return Form(served, key, name, time.perf_counter(), scored)


def _ask(fields: Fields, job: Any, form: Form, notes: list[str]) -> Ask:
    render = functools.partial(OllamaStream, form)
    return ask_of(fields, [job], functools.partial(whole, form), render, UNUSED, notes, stream=True)


def _load(fields: Fields, form: Form) -> Ask:
    """Nothing to answer: the model is asked to be there, as it is, or to go, as it can't."""
    keep = fields.get("keep_alive")
    line = form.line() | form.last("unload" if keep in (0, "0", "0s") else "load", None)
    fields.flag("stream")
    return Ask([], False, lambda _: line, lambda: OllamaStream(form))


def whole(form: Form, answer: Answer) -> Json:
    """The answer in one object."""
    choice = answer.choices[0]
    more: dict[str, Any] = {"thinking": choice.reasoning} if choice.reasoning else {}
    if choice.calls:
        more["tool_calls"] = [_call(i, *call) for i, call in enumerate(choice.calls)]
    more |= _logprobs(form, choice.tokens)
    return form.line(choice.text, **more) | form.last(_reason(choice), answer.counts)


class OllamaStream:
    """The lines of a stream. A call is sent whole."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._answer = Answer()

    def feed(self, event: Event) -> Iterator[Json]:
        """The lines of one event."""
        self._answer.feed(event)
        if isinstance(event, Reasoning):
            yield self._form.line(thinking=event.text)
        elif isinstance(event, Text):
            yield self._form.line(event.text, **_logprobs(self._form, event.tokens))
        elif isinstance(event, ToolCall):
            yield from self._called(-1)
        elif isinstance(event, Ended):
            yield from self._called(None)
            choice = self._answer.choices[0]
            yield self._form.line() | self._form.last(_reason(choice), self._answer.counts)

    def _called(self, before: int | None) -> Iterator[Json]:
        """The call that is whole now: the one before the latest, or the latest at the end."""
        calls = list(enumerate(self._answer.choices[0].calls))[:before]
        if calls:
            index, (name, arguments) = calls[-1]
            yield self._form.line(tool_calls=[_call(index, name, arguments)])


def _call(index: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"index": index, "name": name, "arguments": json.loads(arguments)}
    return {"id": new_id("call_"), "function": function}


def _logprobs(form: Form, tokens: Any) -> dict[str, Any]:
    if form.logprobs is None or not tokens:
        return {}
    return {"logprobs": chat_logprobs(form.served, tokens, form.logprobs)}


def _reason(choice: Choice) -> str:
    return "length" if choice.reason in ("length", "context") else "stop"


def now() -> str:
    """This moment as RFC 3339 with nanoseconds."""
    moment = time.time_ns()
    second = datetime.datetime.fromtimestamp(moment // 10**9, datetime.timezone.utc)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{moment % 10**9:09d}Z"


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)
