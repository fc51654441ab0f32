"""Chat templates compiled and rendered."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any

import jinja2

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.prompt.render_budget import TEXT_LIMIT, new_budget
from minicpm_mlc.prompt.sandbox import CountedSandbox

# MiniCPM4's published form: each turn between markers, no default system prompt, no BOS inside.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
BUILT_IN = "the built-in ChatML template"
SOURCE_LIMIT = 128 << 10  # characters; published templates have up to 30,000
MESSAGE_LIMIT = 500  # characters of a template's own error that are shown


def compile_template(source: str, origin: str) -> jinja2.Template:
    """Template with the filters, functions and tags that `transformers` gives to chat templates.

    Raises:
        TemplateError: `source` doesn't parse; names `origin` and the line.
    """
    if len(source) > SOURCE_LIMIT:
        raise TemplateError(
            f"{origin} has {len(source):,} characters, expected at most {SOURCE_LIMIT:,}"
        )
    try:
        with new_budget():
            return CountedSandbox().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{origin}, line {error.lineno}: {error.message}") from error
    # jinja2's parser and Python's compiler have limits of their own: nested blocks and brackets,
    # the digits of a number, a `break` outside of a loop
    except Exception as error:
        raise TemplateError(f"{origin} can't be compiled: {_reason(error)}") from error


def render_template(template: jinja2.Template, origin: str, **values: Any) -> str:
    """Text of at most TEXT_LIMIT characters, on a budget of time and memory (render_budget.py).

    Raises:
        TemplateError: whatever went wrong inside; names `origin` and, where known, the line.
    """
    try:
        with new_budget():
            text = _join_limited(template.generate(**values), origin)
        text.encode()
        return text
    except TemplateError:
        raise
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise TemplateError(
            f"{origin} writes half a character, U+{half:04X}, which is not text"
        ) from None
    except Exception as error:  # a template is a program: any Python error can come out of it
        raise TemplateError(f"{origin}{_line_of(error)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return message[:MESSAGE_LIMIT] or type(error).__name__


def _join_limited(pieces: Iterable[str], origin: str) -> str:
    parts = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > TEXT_LIMIT:
            raise TemplateError(
                f"{origin} writes more than {TEXT_LIMIT:,} characters; shorten the messages, or "
                "check its loops"
            )
    return "".join(parts)


def _line_of(error: Exception) -> str:
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == "<template>"
    ]
    return f", line {lines[-1]}" if lines else ""
