"""What several verbs' options share: kinds of values, and the groups of options."""

from __future__ import annotations

from typing import Any

import click

from minicpm_mlc.base import choices
from minicpm_mlc.ops.formats.weights import SCHEMES as WEIGHT_SCHEMES

ATTENTION = click.Choice(choices.ATTENTION)
SCHEMES = click.Choice(list(WEIGHT_SCHEMES))
KV = click.Choice(choices.KV_NAMES)
SPECULATE = click.Choice(choices.SPECULATE)
PORT = click.IntRange(0, 65535)


class Numbers(click.ParamType):
    """A list of integers, separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """The numbers of 1,2,3; fails as click does for anything else."""
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0,1024", param, ctx)


def device_option(text: str) -> Any:
    """--device, whose values the shell completes."""

    def complete(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
        return [name for name in choices.DEVICES if name.startswith(typed)]

    return click.option("--device", default="cpu", help=text, shell_complete=complete)


def library_option(command: Any) -> Any:
    """Which of a bundle's two libraries."""
    text = "cpu: the processor's library of a bundle that has a GPU's too."
    return click.option("--device", type=click.Choice(["cpu"]), help=text)(command)


def drafting_options(command: Any) -> Any:
    """The options of speculative decoding."""
    options = [
        click.option("--tree-size", type=int, help="Nodes of a draft tree.  [default: what pays]"),
        click.option(
            "--draft-depth", type=int, help="Levels of a draft tree.  [default: what pays]"
        ),
        click.option(
            "--draft-top-k",
            type=int,
            help="Guesses after a token.  [default: 4; 1 for a draft model]",
        ),
        click.option(
            "--draft-model",
            type=click.Path(),
            help="A smaller bundle with the same tokenizer, to draft with.",
        ),
    ]
    return _with(command, options)


def sampling_options(command: Any) -> Any:
    """How tokens are drawn."""
    options = [
        click.option("--temperature", type=float, help="0 is greedy."),
        click.option("--top-k", type=int, help="0 is all."),
        click.option(
            "--top-p", type=float, help="Draw from the likeliest tokens that make up this share."
        ),
        click.option(
            "--min-p",
            type=float,
            help="Draw from tokens at least this times as likely as the likeliest.",
        ),
        click.option("--repetition-penalty", type=float, help="1 is none."),
        click.option("--presence-penalty", type=float, help="0 is none."),
        click.option("--frequency-penalty", type=float, help="0 is none."),
        click.option("--seed", type=int, help="Same seed, same text."),
    ]
    return _with(command, options)


def output_options(command: Any) -> Any:
    """What is shown of an answer."""
    options = [
        click.option("--hide-thinking", is_flag=True, help="Don't show what the model thinks."),
        click.option("--markdown", is_flag=True, help="Render answers, in a terminal."),
        click.option(
            "--show-blocks",
            is_flag=True,
            help="After an answer, the blocks of 64 tokens that it chose most.",
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="One question: print answer, thinking and numbers as JSON.",
        ),
        click.option(
            "--stats/--no-stats",
            default=None,
            help="Tokens/s and context used; for one question also the share of what memory "
            "allows, which is measured.  [default: in a conversation, after each answer]",
        ),
    ]
    return _with(command, options)


def chat_options(command: Any) -> Any:
    """What a conversation or one question can be told: sampling, thinking, speculation, output."""
    options = [
        click.option("--prompt", help="Answer this and leave. Piped text goes before it."),
        click.option("--prompt-file", type=click.Path(), help="The same, from a file."),
        click.option("--system", help="System prompt."),
        click.option("--system-file", type=click.Path(), help="The same, from a file."),
        click.option("--load", type=click.Path(), help="Go on with a conversation of /save."),
        click.option("--continue", "go_on", is_flag=True, help="Go on with the last conversation."),
        click.option(
            "--context",
            type=int,
            help="Tokens of context.  [default: all that the model and memory allow]",
        ),
        click.option("--threads", type=int, help="Threads.  [default: the physical cores]"),
        click.option(
            "--attention",
            type=ATTENTION,
            default="auto",
            help="auto is sparse from the model's dense_len tokens on.",
        ),
        sampling_options,
        click.option(
            "--stop",
            multiple=True,
            help="Text that ends the answer, not the thinking; may be given more than once.",
        ),
        click.option("--max-tokens", type=int, help="Longest answer, in tokens."),
        click.option("--max-think-tokens", type=int, help="Longest thinking, in tokens."),
        click.option(
            "--think/--no-think",
            default=None,
            help="Think before answering, or don't.  [default: the model's]",
        ),
        click.option(
            "--speculate",
            type=SPECULATE,
            help="Guess tokens ahead; the text stays the same.  [default: auto]",
        ),
        drafting_options,
        click.option(
            "--overflow",
            type=click.Choice(choices.OVERFLOW),
            help="A full context ends the conversation, or drops its oldest turns.  "
            "[default: error]",
        ),
        output_options,
    ]
    return _with(command, options)


def _with(command: Any, options: list[Any]) -> Any:
    """The command with these options, in their order."""
    for option in reversed(options):
        command = option(command)
    return command
