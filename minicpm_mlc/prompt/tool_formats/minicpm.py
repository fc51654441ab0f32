"""Calls as Python between markers, the format of MiniCPM3 and MiniCPM4-MCP:

<|thought_start|>
why
<|thought_end|>
<|tool_call_start|>
```python
f(a=1, b="x")
```
<|tool_call_end|>

The markers are plain text. Python has names with letters, digits and underscores alone, so a tool's
name or argument that is no such name gets one, and is told by it again.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minicpm_mlc.prompt.template import Message
from minicpm_mlc.prompt.tool_formats.hermes import with_definitions
from minicpm_mlc.prompt.tools import Call, Tool, Turn, compact, json_rule

THOUGHT = ("<|thought_start|>", "<|thought_end|>")
FENCE = "```python"
TYPES = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
}
CONSTANTS = {"true": True, "false": False, "null": None}
RULES = """\
# How to call functions
Call functions only if the question needs them; otherwise answer it directly. Before a call say
why, between <|thought_start|> and <|thought_end|>. Write calls in Python, with keyword arguments
and literal values:
<|thought_start|>
why these functions
<|thought_end|>
<|tool_call_start|>
```python
function_name(first="text", second=1)
```
<|tool_call_end|>"""


class MiniCPM:
    """The format above."""

    name = "minicpm"
    opening = "<|tool_call_start|>"
    closing = "<|tool_call_end|>"

    def system(self, tools: Sequence[Tool], text: str) -> str:
        """The functions as stubs in Python."""
        names = identifiers(tool.name for tool in tools)
        stubs = "\n\n".join(_stub(tool, names[tool.name]) for tool in tools)
        parts = [
            text,
            f"# Functions\nThese functions can be called:\n{FENCE}\n{stubs}\n```",
            RULES,
        ]
        return "\n\n".join(filter(None, parts))

    def assistant(self, content: str, calls: Sequence[Call]) -> str:
        """The content as the thought before the calls."""
        names = identifiers(call.name for call in calls)
        lines = "\n".join(_written(call, names[call.name]) for call in calls)
        thought = f"{THOUGHT[0]}\n{content}\n{THOUGHT[1]}\n" if content else ""
        return f"{thought}{self.opening}\n{FENCE}\n{lines}\n```\n{self.closing}\n"

    def results(self, turns: Sequence[Turn]) -> list[Message]:
        """A message of role tool for each."""
        return [{"role": "tool", "content": turn.content} for turn in turns]

    def parse(self, text: str, tools: Sequence[Tool]) -> list[Call] | None:
        """One or more calls between the markers."""
        body = text.removeprefix(self.opening).removesuffix(self.closing).strip()
        lines = body.splitlines()
        if lines and lines[0].strip() in ("```", FENCE):
            lines = lines[1:]
        if lines and lines[-1].strip() == "```":
            lines = lines[:-1]
        names = {name: tool for tool, name in identifiers(tool.name for tool in tools).items()}
        by_name = {tool.name: tool for tool in tools}
        try:
            calls = [_call(node, names) for node in ast.parse("\n".join(lines)).body]
            return [_renamed(call, by_name[call.name]) for call in calls] or None
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None

    def grammar(self, tools: Sequence[Tool]) -> str:
        """One call, its arguments in the order of the schema, the required ones first."""
        names = identifiers(tool.name for tool in tools)
        begin, end = json.dumps(f"{self.opening}\n{FENCE}\n"), json.dumps(f"\n```\n{self.closing}")
        rules = [f"call: {begin} ({' | '.join(f'f{i}' for i in range(len(tools)))}) {end}"]
        for i, tool in enumerate(tools):
            rules += _call_rules(f"f{i}", names[tool.name], tool)
        return "\n".join(rules) + "\n"


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """A Python name for each name, no two alike."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        plain = f"_{plain}" if plain[0].isdigit() else plain
        plain = f"{plain}_" if keyword.iskeyword(plain) else plain
        while plain in found.values() and name not in found:
            plain += "_"
        found.setdefault(name, plain)
    return found


def _stub(tool: Tool, name: str) -> str:
    names = identifiers(tool.properties)
    parts = [_parameter(tool, key, names[key]) for key in _ordered(tool)]
    about = [f"        {names[key]}: {_about(tool.properties[key])}" for key in _ordered(tool)]
    lines = [f"def {name}({', '.join(parts)}):", '    """', f"    {tool.description}".rstrip()]
    lines += ["", "    Args:", *about] if about else []
    return "\n".join([*lines, '    """'])


def _parameter(tool: Tool, key: str, name: str) -> str:
    schema = tool.properties[key]
    kind = TYPES.get(str(schema.get("type")) if isinstance(schema, Mapping) else "", "object")
    return f"{name}: {kind}" + ("" if key in tool.required else " = None")


def _about(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return ""
    choice = schema.get("enum")
    about = str(schema.get("description", ""))
    return f"{about} One of {json.dumps(choice, ensure_ascii=False)}." if choice else about


def _ordered(tool: Tool) -> list[str]:
    """Arguments as Python's signatures have them: those without a default first."""
    return sorted(tool.properties, key=lambda key: key not in tool.required)


def _written(call: Call, name: str) -> str:
    names = identifiers(call.arguments)
    given = (
        f"{names[key]}={compact(value) if isinstance(value, str) else repr(value)}"
        for key, value in call.arguments.items()
    )
    return f"{name}({', '.join(given)})"


def _call(node: ast.stmt, names: Mapping[str, str]) -> Call:
    """A statement that is a call of a known function. Raises ValueError for any other."""
    call = node.value if isinstance(node, ast.Expr) else None
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.args
        or call.func.id not in names
    ):
        raise ValueError("no call of a function that there is")
    given = {part.arg: _literal(part.value) for part in call.keywords if part.arg}
    if len(given) != len(call.keywords):
        raise ValueError("an argument without a name, or named twice")
    return Call(names[call.func.id], given)


class _Constants(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in CONSTANTS:
            raise ValueError(f"{node.id} is no literal")
        return ast.Constant(CONSTANTS[node.id])


def _literal(node: ast.expr) -> Any:
    """A value that JSON can hold; JSON's own constants are read too."""
    value = ast.literal_eval(_Constants().visit(node))
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except TypeError as error:
        raise ValueError(str(error)) from None


def _renamed(call: Call, tool: Tool) -> Call:
    keys = {name: key for key, name in identifiers(tool.properties).items()}
    return Call(call.name, {keys.get(name, name): v for name, v in call.arguments.items()})


def _call_rules(rule: str, name: str, tool: Tool) -> list[str]:
    """Rules of one function's call. An optional argument's rule goes on to any later one."""
    names = identifiers(tool.properties)
    keys = _ordered(tool)
    needed = len(tool.required)
    rules = [f'{rule}: "{name}(" {rule}_first ")"']
    values = [
        f'{rule}_v{i}: "{names[key]}=" {json_rule(with_definitions(tool.properties[key], tool))}'
        for i, key in enumerate(keys)
    ]
    required = ' ", " '.join(f"{rule}_v{i}" for i in range(needed))
    optional = range(needed, len(keys))
    if needed:
        rest = " ".join(f'(", " {rule}_v{i})?' for i in optional)
        return [*rules, f"{rule}_first: {required} {rest}".rstrip(), *values]
    ways = [
        " ".join([f"{rule}_v{i}", *(f'(", " {rule}_v{j})?' for j in optional if j > i)])
        for i in optional
    ]
    return [*rules, f"{rule}_first: " + " | ".join([*ways, '""']), *values]
