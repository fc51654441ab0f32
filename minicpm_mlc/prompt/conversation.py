"""A conversation with tools, from messages in the form of OpenAI's chat API."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.base.errors import FieldError, TemplateError
from minicpm_mlc.base.text import quoted
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.prompt.tools import Call, Tool, Turn, arguments_of

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
CHOICES = ("auto", "none", "required")
TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,256}")


@dataclass(frozen=True)
class Chat:
    """A conversation, and what its next answer has to be."""

    turns: Sequence[Turn]
    think: bool | None = None  # None: as the template likes
    most_thinking: int | None = None  # tokens
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"  # or "none", "required", "=NAME"
    schema: Mapping[str, Any] | None = None  # of the answer
    most_calls: int | None = None
    continues: bool = False  # the last message is the beginning of the answer

    @property
    def callable(self) -> Sequence[Tool]:
        """The tools that may be called. Raises FieldError where the choice names none of them."""
        if self.tool_choice == "none":
            return ()
        if not self.tool_choice.startswith("="):
            return self.tools
        found = [tool for tool in self.tools if tool.name == self.tool_choice[1:]]
        if not found:
            raise FieldError(
                f"tool_choice names {self.tool_choice[1:]!r:.80}, which is no tool", "tool_choice"
            )
        return found

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return bool(self.tools) and self.tool_choice not in ("auto", "none")


def chat_of(
    messages: Sequence[Mapping[str, Any]],
    think: bool | None = None,
    most_thinking: int | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    schema: Mapping[str, Any] | None = None,
) -> Chat:
    """The same in Python's objects. Raises FieldError or TemplateError."""
    fields = Fields(
        {"messages": list(messages), "tools": list(tools or ()), "tool_choice": tool_choice}
    )
    known = unlike(
        [tool_of(entry.object("function") or entry) for entry in fields.objects("tools")]
    )
    return Chat(
        turns_of(fields.objects("messages")),
        think,
        most_thinking,
        known,
        tool_choice_of(fields, known),
        schema,
    )


def turns_of(messages: Iterable[Fields]) -> list[Turn]:
    """The conversation. Raises FieldError or TemplateError for one that no template takes."""
    turns = list(map(turn_of, messages))
    check_turns(turns)
    return turns


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises for a conversation that no template takes."""
    if not turns:
        raise FieldError("messages is empty; expected at least one message", "messages")
    if turns[0].role == "tool":
        raise TemplateError("messages[0] has the role tool; a result follows a call")


def turn_of(message: Fields) -> Turn:
    """One message. An assistant's reasoning is taken and left out, as templates do."""
    role = message.choice("role", [*ROLES, "tool"])
    if role is None:
        raise FieldError("a message has no role", "messages")
    content = read_content(message)
    if role == "tool":
        return Turn("tool", content)
    calls = tuple(map(_call, message.objects("tool_calls"))) if role == "assistant" else ()
    return Turn(ROLES[role], content, calls)


def read_content(message: Fields, name: str = "content", kinds: Sequence[str] = ("text",)) -> str:
    """A text, null, or a list of text parts, joined."""
    content = message.get(name)
    if not isinstance(content, list):
        return message.text(name) or ""
    parts = message.objects(name)
    for part in parts:
        if part.get("type") not in kinds:
            raise FieldError(
                f"a part of {name} has the type {quoted(part.get('type'))}; this model takes text "
                "only",
                name,
            )
    return "".join(part.text("text") or "" for part in parts)


def tool_of(fields: Fields, schema: str = "parameters") -> Tool:
    """A function; `schema` is the field of its arguments' schema."""
    name = fields.text("name") or ""
    if not TOOL_NAME.fullmatch(name):
        raise fields.wrong("name", "letters, digits and _ . : / - alone")
    parameters = fields.object(schema)
    values = dict(parameters.values) if parameters else {}
    if not isinstance(values.get("properties", {}), dict):
        raise FieldError(f"{schema}.properties of the tool {name} is no object", "tools")
    required = values.get("required") or []
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise FieldError(f"{schema}.required of the tool {name} is no list of names", "tools")
    return Tool(name, fields.text("description") or "", values)


def unlike(tools: list[Tool]) -> list[Tool]:
    """The tools, no two of one name."""
    names = [tool.name for tool in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise FieldError(f"two tools have the name {sorted(twice)[0]}", "tools")
    return tools


def tool_choice_of(fields: Fields, tools: Sequence[Tool]) -> str:
    """ "auto", "none", "required" or "=NAME"."""
    choice = fields.get("tool_choice")
    if isinstance(choice, Mapping):
        inner = Fields(choice, "tool_choice")
        named = inner.object("function") or inner
        choice = f"={named.need('name')}"
    elif choice not in (None, *CHOICES):
        raise fields.wrong("tool_choice", "none, auto, required or a function")
    if choice not in (None, "auto", "none") and not tools:
        raise FieldError("tool_choice asks for a call and there are no tools", "tool_choice")
    return choice or "auto"


def _call(entry: Fields) -> Call:
    inner = entry.object("function") or entry
    arguments = inner.get("arguments")
    if isinstance(arguments, dict):
        return Call(str(inner.need("name")), arguments)
    return Call(str(inner.need("name")), arguments_of(inner.text("arguments") or ""))
