"""What `minicpm-mlc bench` measures, and which of its options each measurement uses. The others are
refused, not ignored.
"""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

_DRAFTING = (
    "tree_size",
    "draft_depth",
    "draft_top_k",
    "draft_model",
    "prompt_file",
    "replay",
    "record",
)
PLAIN = ""  # prefill and decode, what is measured when no option asks for something else
MODES: dict[str, tuple[str, ...]] = {
    "attention_only": ("depth", "prompt_tokens", "repeats", "threads", "kv"),
    "operators": ("bundle", "depth", "prompt_tokens", "repeats", "threads", "attention"),
    "speculate": (
        "bundle",
        "speculate",
        "new_tokens",
        "repeats",
        "threads",
        "attention",
        *_DRAFTING,
    ),
    "plot": (
        "bundle",
        "plot",
        "depth",
        "prompt_tokens",
        "new_tokens",
        "repeats",
        "threads",
        "random_cache",
    ),
    PLAIN: (
        "bundle",
        "depth",
        "prompt_tokens",
        "new_tokens",
        "repeats",
        "threads",
        "attention",
        "random_cache",
        "rpc",
        "key",
        "key_file",
    ),
}
_ALWAYS = ("form", "sha256", "trust")  # json or markdown; which bundles may run
_NAMES = {"bundle": "path", "depth": "depths", "plot": "picture"}  # of the functions that measure


def mode_and_options(ctx: click.Context) -> tuple[str, dict[str, Any]]:
    """Which of MODES the command line asks for, and the options of its function, which has depths
    of its own.

    Raises UsageError naming the options that it would not use, or what it lacks.
    """
    given = [
        p
        for p in ctx.command.params
        if ctx.get_parameter_source(p.name or "") is not ParameterSource.DEFAULT
    ]
    names = {p.name for p in given}
    mode = next((mode for mode in MODES if mode in names), PLAIN)
    strange = [p for p in given if p.name not in (mode, *_ALWAYS, *MODES[mode])]
    if strange:
        users = [
            _spelled(other)
            for other in MODES
            if {p.name for p in strange} <= {other, *MODES[other]}
        ]
        hint = f", or measure with {' or '.join(users)}" if users else ""
        which = "it" if len(strange) == 1 else "them"
        raise click.UsageError(
            f"{_spelled(mode)} does not use {', '.join(map(_shown, strange))}; leave {which} "
            f"out{hint}."
        )
    if "bundle" in MODES[mode] and ctx.params["bundle"] is None:
        raise click.UsageError("Missing argument 'BUNDLE'; or give --attention-only.")
    return mode, {
        _NAMES.get(name, name): ctx.params[name]
        for name in MODES[mode]
        if name != "depth" or ctx.params[name]
    }


def _spelled(mode: str) -> str:
    return f"bench --{mode.replace('_', '-')}" if mode else "plain bench"


def _shown(param: click.Parameter) -> str:
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
