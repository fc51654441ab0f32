"""The jinja2 sandbox that chat templates run in."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minicpm_mlc.base.errors import TemplateError

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
