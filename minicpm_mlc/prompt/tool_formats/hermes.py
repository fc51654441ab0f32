"""Calls as JSON between tags, the format that most models without one of their own are served with:

<tool_call>
{"name": "f", "arguments": {"a": 1}}
</tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from minicpm_mlc.prompt.template import Message
from minicpm_mlc.prompt.tools import Call, Tool, Turn, compact, json_rule

RULES = (
    "For each function call, return a JSON object with the function's name and its arguments "
    "within <tool_call></tool_call> tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call>'
)
DEFINITIONS = ("$defs", "definitions")


class Hermes:
    """The format above."""

    name = "hermes"
    opening = "<tool_call>"
    closing = "</tool_call>"

    def system(self, tools: Sequence[Tool], text: str) -> str:
        """The functions as JSON lines between <tools> tags."""
        lines = "\n".join(compact({"type": "function", "function": described(t)}) for t in tools)
        parts = [
            text,
            "# Tools\n\nYou may call one or more functions to help with the user's request.\n"
            f"They are described within <tools></tools> tags:\n<tools>\n{lines}\n</tools>",
            RULES,
        ]
        return "\n\n".join(filter(None, parts))

    def assistant(self, content: str, calls: Sequence[Call]) -> str:
        """Content, then each call between its tags."""
        written = [
            f"{self.opening}\n{compact({'name': c.name, 'arguments': c.arguments})}\n{self.closing}"
            for c in calls
        ]
        return "\n".join([*filter(None, [content]), *written])

    def results(self, turns: Sequence[Turn]) -> list[Message]:
        """One user message with all results between tags."""
        written = (f"<tool_response>\n{turn.content}\n</tool_response>" for turn in turns)
        return [{"role": "user", "content": "\n".join(written)}]

    def parse(self, text: str, tools: Sequence[Tool]) -> list[Call] | None:
        """The one call between the tags."""
        body = text.removeprefix(self.opening).removesuffix(self.closing)
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(call, dict) or call.get("name") not in {tool.name for tool in tools}:
            return None
        arguments = call.get("arguments", {})
        return [Call(call["name"], arguments)] if isinstance(arguments, dict) else None

    def grammar(self, tools: Sequence[Tool]) -> str:
        """The tags and the JSON object of one of the tools."""
        forms = []
        for tool in tools:
            begin = f'{self.opening}\n{{"name": {compact(tool.name)}, "arguments": '
            end = f"}}\n{self.closing}"
            schema = json_rule(schema_of(tool))
            forms.append(f"{json.dumps(begin)} {schema} {json.dumps(end)}")
        return f"call: {' | '.join(forms)}\n"


def described(tool: Tool) -> dict[str, object]:
    """A tool as OpenAI's API describes it."""
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def schema_of(tool: Tool) -> dict[str, object]:
    """The schema of a tool's arguments, which is an object."""
    return {"type": "object", "properties": {}, **tool.parameters}


def with_definitions(schema: Any, tool: Tool) -> Any:
    """One argument's schema, with what it may refer to."""
    shared = {key: tool.parameters[key] for key in DEFINITIONS if key in tool.parameters}
    return {**schema, **shared} if isinstance(schema, Mapping) else schema
