"""Calls as tags, the format of MiniCPM5:

<function name="f"><param name="a">1</param><param name="t"><![CDATA[a < b]]></param></function>
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minicpm_mlc.prompt.template import Message
from minicpm_mlc.prompt.tool_formats.hermes import Hermes, described, with_definitions
from minicpm_mlc.prompt.tools import Call, Tool, Turn, compact, json_rule

CALL = re.compile(r'<function name="([^"]*)">(.*)</function>', re.DOTALL)
PARAM = re.compile(
    r'\s*<param name="([^"]*)">(?:\s*<!\[CDATA\[(.*?)\]\]>\s*|(.*?))</param>', re.DOTALL
)
RULES = (
    "Call a function by its name and parameters, a text with markup within <![CDATA[ and ]]>:\n"
    '<function name="function-name"><param name="parameter-name">value</param></function>'
)


class MiniCPM5:
    """The format above."""

    name = "minicpm5"
    opening = "<function"
    closing = "</function>"

    def system(self, tools: Sequence[Tool], text: str) -> str:
        """The functions as JSON lines between <tools> tags."""
        lines = "\n".join(compact({"type": "function", "function": described(t)}) for t in tools)
        tools_text = f"# Tools\n\nYou can call functions.\n<tools>\n{lines}\n</tools>\n\n{RULES}"
        return "\n\n".join(filter(None, [text, tools_text]))

    def assistant(self, content: str, calls: Sequence[Call]) -> str:
        """Content, then the calls one after the other."""
        return content + "".join(map(_written, calls))

    def results(self, turns: Sequence[Turn]) -> list[Message]:
        """One user message with all results between tags."""
        return Hermes().results(turns)

    def parse(self, text: str, tools: Sequence[Tool]) -> list[Call] | None:
        """The one call, if its function is known and its parameters are that function's."""
        found = CALL.fullmatch(text)
        tool = next((t for t in tools if found and t.name == found[1]), None)
        if not found or tool is None:
            return None
        given: dict[str, Any] = {}
        at = 0
        for part in PARAM.finditer(found[2]):
            name, literal, plain = part.groups()
            if part.start() != at or name in given or name not in tool.properties:
                return None
            given[name] = _value(tool.properties[name], plain if literal is None else literal)
            at = part.end()
        whole = not found[2][at:].strip() and given.keys() >= set(tool.required)
        return [Call(tool.name, given)] if whole else None

    def grammar(self, tools: Sequence[Tool]) -> str:
        """One call, its parameters in the order of the schema."""
        rules = [f"call: {' | '.join(f'f{i}' for i in range(len(tools)))}"]
        rules += ['text: /[^<]*/ | "<![CDATA[" literal', 'literal[suffix="]]>"]: /(.|\\n)*/']
        for i, tool in enumerate(tools):
            begin = json.dumps(f"<function name={json.dumps(tool.name)}>")
            parts = [_param_rule(tool, key) for key in tool.properties]
            rules.append(f'f{i}: {begin} {" ".join(parts)} "</function>"')
        return "\n".join(rules) + "\n"


def _param_rule(tool: Tool, key: str) -> str:
    schema = tool.properties[key]
    text = _is_text(schema) and "enum" not in schema and "const" not in schema
    if _is_text(schema) and "enum" in schema:
        value = "(" + " | ".join(json.dumps(choice) for choice in schema["enum"]) + ")"
    else:
        value = "text" if text else json_rule(with_definitions(schema, tool))
    begin = json.dumps(f"<param name={json.dumps(key)}>")
    rule = f'({begin} {value} "</param>")'
    return rule if key in tool.required else rule + "?"


def _is_text(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string"


def _value(schema: Any, text: str) -> Any:
    """A parameter: strings as they are, anything else by JSON, then as Python writes it."""
    text = text.strip()
    if _is_text(schema):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            return json.loads(json.dumps(read(text), allow_nan=False))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _written(call: Call) -> str:
    params = (
        f'<param name="{key}">{_text(value)}</param>' for key, value in call.arguments.items()
    )
    return f'<function name="{call.name}">{"".join(params)}</function>'


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else compact(value)
    return f"<![CDATA[{text}]]>" if "<" in text and "]]>" not in text else text
