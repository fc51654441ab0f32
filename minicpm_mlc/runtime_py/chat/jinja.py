"""The jinja2 sandbox that chat templates run in, and where a checkpoint keeps its template."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.base.files import read_json_object

# MiniCPM4's published form: each turn between markers, no default system prompt, no BOS inside.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BUILT_IN = "the built-in ChatML template"
OUTPUT_LIMIT = 16 << 20  # characters; no context holds more


def compile_template(source: str, origin: str) -> jinja2.Template:
    """Template with the filters and functions that `transformers` gives to chat templates.

    Raises:
        TemplateError: `source` doesn't parse; names `origin` and the line.
    """
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{origin}, line {error.lineno}: {error.message}") from error


def render_template(template: jinja2.Template, origin: str, **values: Any) -> str:
    """Text of at most OUTPUT_LIMIT characters.

    Raises:
        TemplateError: whatever went wrong inside; names `origin` and, where known, the line.
    """
    try:
        return _join_limited(template.generate(**values), origin)
    except TemplateError:
        raise
    except Exception as error:  # a template is a program: any Python error can come out of it
        raise TemplateError(
            f"{origin}{_line_of(error)}: {error or type(error).__name__}"
        ) from error


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox forbids reaching Python; this also forbids giants made by one expression, such as
    'a' * 10**12.
    """

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and abs(right) > 64:
            raise jinja2.exceptions.SecurityError(f"exponent {right} is above 64")
        for text, times in ((left, right), (right, left)):
            if (
                isinstance(text, str | list | tuple)
                and isinstance(times, int)
                and len(text) * times > OUTPUT_LIMIT
            ):
                raise jinja2.exceptions.SecurityError(
                    f"a repetition of more than {OUTPUT_LIMIT:,} items"
                )
        return super().call_binop(context, operator, left, right)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _join_limited(pieces: Iterable[str], origin: str) -> str:
    parts = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > OUTPUT_LIMIT:
            raise TemplateError(
                f"{origin} writes more than {OUTPUT_LIMIT:,} characters; check its loops"
            )
    return "".join(parts)


def _line_of(error: Exception) -> str:
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == "<template>"
    ]
    return f", line {lines[-1]}" if lines else ""


def read_tokenizer_config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json as a dict; empty when there is no such file."""
    if not path.is_file():
        return {}
    return read_json_object(path, TemplateError, "copy it again from the checkpoint")


def find_template(folder: Path, config: dict[str, Any]) -> tuple[str, str]:
    """(source, where it was found): chat_template.jinja, else the tokenizer's config, else
    CHATML.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), str(file)
    found = config.get("chat_template")
    origin = f"chat_template in {folder / 'tokenizer_config.json'}"
    if isinstance(found, list):
        named = {
            entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)
        }
        if "default" not in named:
            has = ", ".join(sorted(map(str, named)))
            raise TemplateError(
                f"{origin} is a list without a template named 'default' (it has: {has})"
            )
        found = named["default"]
    if found is None:
        return CHATML, BUILT_IN
    if not isinstance(found, str):
        raise TemplateError(
            f"{origin} is {type(found).__name__}, expected a string or a list of named templates"
        )
    return found, origin
