"""Fields of a conversation as OpenAI's chat API has them."""

from __future__ import annotations

from typing import Any

from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.prompt.conversation import tool_of, unlike
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.prompt.tools import Tool


def read_tools(fields: Fields) -> list[Tool]:
    """The functions that may be called."""
    fields.refuse("functions", "function_call", why="give tools and tool_choice")
    tools = []
    for entry in fields.objects("tools"):
        if entry.get("type") != "function":
            raise entry.wrong("type", "function")
        inner = entry.object("function")
        if inner is None:
            raise FieldError("a tool has no function", "tools")
        tools.append(tool_of(inner))
    return unlike(tools)


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
        raise FieldError("response_format has no schema", "response_format")
    return dict(schema.values)
