"""The settings of a chat: how each is typed, and what may be chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from minicpm_mlc.base.choices import OVERFLOW, SPECULATE
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import any_of, quoted
from minicpm_mlc.prompt.sampling import SamplingParams, check_count
from minicpm_mlc.runtime_py.chat.text import StopStrings
from minicpm_mlc.runtime_py.overflow import check_overflow
from minicpm_mlc.runtime_py.speculative.options import Speculation


class SessionError(MiniCPMError):
    """A command, setting or saved session that can't be used."""


def _think(text: str) -> bool | None:
    return {"on": True, "off": False, "auto": None}[text]


def _stop(text: str) -> list[str]:
    """One stop string as typed, or a JSON list of them (which can hold line ends)."""
    return json.loads(text) if text.startswith("[") else [text]


# Setting -> (from text, what it takes)
SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (float, "a number (0 is greedy)"),
    "top_p": (float, "a number up to 1"),
    "top_k": (int, "a whole number (0 is all)"),
    "min_p": (float, "a number up to 1"),
    "repetition_penalty": (float, "a number (1 is none)"),
    "presence_penalty": (float, "a number (0 is none)"),
    "frequency_penalty": (float, "a number (0 is none)"),
    "seed": (int, "a whole number"),
    "max_tokens": (int, "a whole number above 0"),
    "max_think_tokens": (int, "a whole number, 0 or more"),
    "think": (_think, "on, off or auto"),
    "stop": (_stop, 'text, or a JSON list such as ["\\n\\n"]'),
    "overflow": (str, any_of(OVERFLOW) + " (what a full context does)"),
    "speculate": (str, any_of(SPECULATE)),
    "tree_size": (int, "a whole number (nodes of a draft tree)"),
    "draft_depth": (int, "a whole number (levels of a draft tree)"),
    "draft_top_k": (int, "a whole number (guesses after a token)"),
}
WORDS = {  # what Tab offers after a setting's name
    "think": ("on", "off", "auto"),
    "overflow": OVERFLOW,
    "speculate": SPECULATE,
}


def typed_as(name: str, value: Any) -> str:
    """A setting's value as it is typed after `/set NAME`."""
    if name == "think":
        return {True: "on", False: "off", None: "auto"}[value]
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "default" if value is None else str(value)


def parse_setting(name: str, text: str) -> Any:
    """Value of a setting as typed after `/set NAME`. Raises SessionError for an unknown name or
    unreadable value.
    """
    if name not in SETTINGS:
        raise SessionError(
            f"there is no setting {quoted(name)}; settings are {', '.join(SETTINGS)}"
        )
    parse, takes = SETTINGS[name]
    try:
        return parse(text)
    except (ValueError, KeyError, RecursionError):  # the last from JSON of very many brackets
        seen = f", not {quoted(text)}" if text else f": /set {name} VALUE"
        raise SessionError(f"{name} takes {takes}{seen}") from None


def check_options(options: dict[str, Any]) -> None:
    """Raises SessionError or SamplingError for names or values that the engine would refuse."""
    if unknown := sorted(set(options) - set(SETTINGS)):
        raise SessionError(
            f"there is no setting {quoted(unknown[0])}; settings are {', '.join(SETTINGS)}"
        )
    for kind in (SamplingParams, Speculation):
        names = {f.name for f in fields(kind)}
        kind(**{name: value for name, value in options.items() if name in names})
    check_count("max_tokens", options.get("max_tokens", 1), lowest=1)
    check_count("max_think_tokens", options.get("max_think_tokens", 0))
    check_overflow(options.get("overflow", OVERFLOW[0]))
    if not isinstance(options.get("think"), bool | None):
        raise SessionError(f"think is {quoted(options['think'])}; it must be true, false or null")
    stop = options.get("stop", [])
    if not isinstance(stop, list):
        raise SessionError(f"stop is {quoted(stop)}; it must be a list of texts")
    StopStrings(stop)
