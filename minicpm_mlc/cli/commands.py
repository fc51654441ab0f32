"""What every verb is made of: --debug, an example under its help, how errors end, and how results
are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from minicpm_mlc.base.explain import explain, is_expected, leaves
from minicpm_mlc.base.streams import json_text, prepare_streams, say

_DEBUG = f"{__name__}.debug"  # the key of click's meta
DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, _, value: ctx.meta.update({_DEBUG: value}),
    help="Show the traceback of a bug.",
)


class Command(click.Command):
    """A command with --debug, which `debugging` tells and the command itself doesn't see."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options and arguments, then those of every command."""
        return [*super().get_params(ctx), DEBUG]


class Commands(click.Group):
    """Turns errors into one line and status 1, Ctrl-C into status 130. Each command has --debug,
    with which a bug shows its traceback.
    """

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        prepare_streams()
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, click.exceptions.Exit, click.ClickException, click.Abort):
            raise  # click ends with them
        except KeyboardInterrupt:
            click.echo("", err=True)
            ctx.exit(130)
        except BaseException as error:
            if leaves(error) or (debugging(ctx) and not is_expected(error)):
                raise
            say(f"error: {explain(error)}", stream=sys.stderr)
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of a user's work."""
        return list(self.commands)


def debugging(ctx: click.Context) -> bool:
    """Whether the command was given --debug."""
    return ctx.meta.get(_DEBUG, False)


def example(text: str) -> Any:
    """Sets the example at the end of a command's help."""
    return {"epilog": f"Example: {text}", "context_settings": {"show_default": True}}


def note(text: str) -> None:
    """Says on standard error what a user should know of what a command does."""
    click.echo(f"note: {text}", err=True)


def print_report(
    report: dict[str, Any], as_text: Callable[[dict[str, Any]], str], as_json: bool
) -> None:
    """Says what a verb found: as one JSON object, or as the text that `as_text` makes of it."""
    say(json_text(report, indent=1) if as_json else as_text(report))
