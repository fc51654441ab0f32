"""Messages and tools as OpenAI's chat API has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from minicpm_mlc.base.text import quoted
from minicpm_mlc.prompt.tools import Call, Tool, Turn, arguments_of
from minicpm_mlc.serve.errors import bad
from minicpm_mlc.serve.fields import Fields
from minicpm_mlc.serve.served import check_turns

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,256}")


def read_messages(fields: Fields) -> list[Turn]:
    """The conversation."""
    turns = [read_message(message) for message in fields.objects("messages")]
    check_turns(turns)
    return turns


def read_message(message: Fields) -> Turn:
    """One message. An assistant's reasoning is taken and left out, as templates do."""
    role = message.choice("role", [*ROLES, "tool"])
    if role is None:
        raise bad("a message has no role", "messages")
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
            raise bad(
                f"a part of {name} has the type {quoted(part.get('type'))}; this model takes text "
                "only",
                name,
            )
    return "".join(part.text("text") or "" for part in parts)


def read_tools(fields: Fields) -> list[Tool]:
    """The functions that may be called."""
    fields.refuse("functions", "function_call", why="give tools and tool_choice")
    tools = []
    for entry in fields.objects("tools"):
        if entry.get("type") != "function":
            raise entry.wrong("type", "function")
        inner = entry.object("function")
        if inner is None:
            raise bad("a tool has no function", "tools")
        tools.append(tool_of(inner, "parameters"))
    return unlike(tools)


def tool_of(fields: Fields, schema: str) -> Tool:
    """A function; `schema` is the field of its arguments' schema."""
    name = fields.text("name") or ""
    if not TOOL_NAME.fullmatch(name):
        raise fields.wrong("name", "letters, digits and _ . : / - alone")
    parameters = fields.object(schema)
    values = dict(parameters.values) if parameters else {}
    if not isinstance(values.get("properties", {}), dict):
        raise bad(f"{schema}.properties of the tool {name} is no object", "tools")
    required = values.get("required") or []
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise bad(f"{schema}.required of the tool {name} is no list of names", "tools")
    return Tool(name, fields.text("description") or "", values)


def unlike(tools: list[Tool]) -> list[Tool]:
    """The tools, no two of one name."""
    names = [tool.name for tool in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise bad(f"two tools have the name {sorted(twice)[0]}", "tools")
    return tools


def read_tool_choice(fields: Fields, tools: Sequence[Tool]) -> str:
    """ "auto", "none", "required" or "=NAME"."""
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        inner = Fields(choice, "tool_choice")
        named = inner.object("function") or inner
        choice = f"={named.need('name')}"
    elif choice not in (None, "auto", "none", "required"):
        raise fields.wrong("tool_choice", "none, auto, required or a function")
    if choice not in (None, "auto", "none") and not tools:
        raise bad("tool_choice asks for a call and there are no tools", "tool_choice")
    return choice or "auto"


def read_most_calls(fields: Fields) -> int | None:
    """How many calls an answer may have; None: any number."""
    return 1 if fields.flag("parallel_tool_calls") is False else None


def read_schema(form: Fields | None) -> dict[str, Any] | None:
    """The schema that a response format asks for."""
    kind = form.choice("type", ("text", "json_object", "json_schema")) if form else None
    if form is None or kind in (None, "text"):
        return None
    if kind == "json_object":
        schema = form.object("schema")
        return dict(schema.values) if schema else {"type": "object"}
    inner = form.object("json_schema") or form  # the Responses API has the schema beside the type
    schema = inner.object("schema")
    if schema is None:
        raise bad("response_format has no schema", "response_format")
    return dict(schema.values)


def _call(entry: Fields) -> Call:
    inner = entry.object("function") or entry
    arguments = inner.get("arguments")
    if isinstance(arguments, dict):
        return Call(str(inner.need("name")), arguments)
    return Call(str(inner.need("name")), arguments_of(inner.text("arguments") or ""))
