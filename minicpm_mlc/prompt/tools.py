"""Tools that a model may call: what they are, and how a conversation with them becomes plain
messages. How a model writes a call is a `ToolFormat`, one file each in tool_formats/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.prompt.template import Message

# white space within JSON; without a limit a small model may write nothing else
SPACE = r"( |\n {0,20})?"


@dataclass(frozen=True)
class Tool:
    """A function of the client's. `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def properties(self) -> Mapping[str, Any]:
        """Schema of each argument by name."""
        found = self.parameters.get("properties")
        return found if isinstance(found, Mapping) else {}

    @property
    def required(self) -> Sequence[str]:
        """Arguments that have to be given."""
        found = self.parameters.get("required")
        return [name for name in found if name in self.properties] if found else []


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation with tools: an assistant's may have calls."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()


class ToolFormat(Protocol):
    """How a model is told of tools, and how it writes its calls."""

    name: str
    opening: str  # what a call begins with
    closing: str  # what it ends with

    def system(self, tools: Sequence[Tool], text: str) -> str:
        """The system prompt `text` with the tools in it."""
        ...

    def assistant(self, content: str, calls: Sequence[Call]) -> str:
        """A past answer that ended in calls."""
        ...

    def results(self, turns: Sequence[Turn]) -> list[Message]:
        """What consecutive calls gave, as messages."""
        ...

    def parse(self, text: str, tools: Sequence[Tool]) -> list[Call] | None:
        """The calls of a text that begins with `opening`; None where it is none of this format."""
        ...

    def grammar(self, tools: Sequence[Tool]) -> str:
        """A rule `call` in Lark's syntax, as llguidance reads it: a call of one of the tools."""
        ...


def plain_messages(turns: Sequence[Turn], tools: Sequence[Tool], form: ToolFormat) -> list[Message]:
    """The conversation in messages of role and content alone, as any template takes them."""
    messages: list[Message] = []
    turns = _with_system(turns, tools, form) if tools else list(turns)
    results: list[Turn] = []
    for turn in turns:
        if turn.role == "tool":
            results.append(turn)
            continue
        messages += form.results(results) if results else []
        results = []
        content = form.assistant(turn.content, turn.calls) if turn.calls else turn.content
        messages.append({"role": turn.role, "content": content})
    return messages + (form.results(results) if results else [])


def _with_system(turns: Sequence[Turn], tools: Sequence[Tool], form: ToolFormat) -> list[Turn]:
    first = turns[0] if turns and turns[0].role == "system" else None
    system = Turn("system", form.system(tools, first.content if first else ""))
    return [system, *(turns[1:] if first else turns)]


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments of a past call, which clients send as JSON. Raises TemplateError for anything
    but an object.
    """
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise TemplateError(f"arguments of a tool call are {text!r:.80}, expected a JSON object")
    return found


def json_rule(schema: Any) -> str:
    """JSON that a schema allows, as llguidance's Lark has it."""
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": {"whitespace_pattern": SPACE}}
    return f"%json {json.dumps(schema)}"


def compact(value: object) -> str:
    """JSON on one line, in the characters that a model reads."""
    return json.dumps(value, ensure_ascii=False)
