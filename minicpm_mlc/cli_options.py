"""What the commands' options share: kinds of values, groups of options, and how errors end."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import click

from minicpm_mlc.base import choices
from minicpm_mlc.base.explain import explain, is_expected, leaves
from minicpm_mlc.base.streams import prepare_streams, say
from minicpm_mlc.ops.formats.weights import SCHEMES as WEIGHT_SCHEMES

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.rpc.client import RemoteMachine

ATTENTION = click.Choice(choices.ATTENTION)
SCHEMES = click.Choice(list(WEIGHT_SCHEMES))
KV = click.Choice(choices.KV_NAMES)
SPECULATE = click.Choice(choices.SPECULATE)

_DEBUG = f"{__name__}.debug"  # the key of click's meta
DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, _, value: ctx.meta.update({_DEBUG: value}),
    help="Show the traceback of a bug.",
)


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


class Source(click.Path):
    """A path whose absence is told with what to give."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What to give for an option that was left out."""
        return (
            "Give the checkpoint or bundle whose tokens are counted, for example --tokenizer "
            "./MiniCPM4-8B"
        )


def note(text: str) -> None:
    """Says on standard error what a user should know of what a command does."""
    click.echo(f"note: {text}", err=True)


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
    for option in reversed(options):
        command = option(command)
    return command


def chat_options(command: Any) -> Any:
    """What a conversation or one question can be told: sampling, thinking, speculation, output."""
    options = [
        click.option("--prompt", help="Answer this and leave. Piped text goes before it."),
        click.option("--system", help="System prompt."),
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
        click.option("--hide-thinking", is_flag=True, help="Don't show what the model thinks."),
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
            "--stats",
            is_flag=True,
            help="One question: print tokens/s and context used on standard error.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


KEY_HELP = (
    "The server's key. Every user of this machine can see it here: better give --key-file or the "
    "variable MINICPM_MLC_KEY"
)
KEY_FILE_HELP = "A file whose first line is the key."


def rpc_options(command: Any) -> Any:
    """The options of a bundle that runs on another machine."""
    rpc_help = "Run the bundle there; its files are uploaded once."
    for option in (
        click.option("--key-file", type=click.Path(), help=KEY_FILE_HELP),
        click.option("--key", help=f"{KEY_HELP}, or be asked in a terminal."),
        click.option("--rpc", metavar="HOST:PORT", help=rpc_help),
    ):
        command = option(command)
    return command


def trust_options(command: Any) -> Any:
    """The options of a bundle that comes from elsewhere, and the question for one without them."""

    @functools.wraps(command)
    def run(*args: Any, sha256: tuple[str, ...], trust: bool, **options: Any) -> Any:
        from minicpm_mlc.runtime_py.admission import admit  # refused where it is opened otherwise

        asks = _at_a_terminal() and not options.get("files_only")
        if asks or sha256 or trust:
            for path in filter(None, map(options.get, ("bundle", "draft_model"))):
                admit(path, sha256 or None, trust, _ask if asks else None)
        return command(*args, **options)

    run = click.option("--trust", is_flag=True, help="Trust this bundle's maker, from now on.")(run)
    return click.option(
        "--sha256",
        metavar="HASH",
        multiple=True,
        help="Run only a bundle whose manifest has this SHA-256; inspect prints it.",
    )(run)


def _at_a_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _ask(bundle: str) -> bool:
    return click.confirm(
        f"{bundle} was not compiled here. A bundle is a program: it runs with your rights, and can "
        "do all that you can. Do you trust its maker?",
        err=True,
    )


def remote_machine(
    rpc: str | None, key: str | None, key_file: str | None, *bundles: str | None
) -> RemoteMachine | None:
    """The machine that --rpc names, with these bundles uploaded; None: this one."""
    if rpc is None and key is None and key_file is None:
        return None
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.runtime_py.rpc.client import connect
    from minicpm_mlc.runtime_py.rpc.key import given_key

    key = given_key(key, key_file)
    if rpc and key is None and sys.stderr.isatty():
        key = click.prompt(f"Key of {rpc}", hide_input=True, err=True)
    with show_progress() as report:
        return connect(rpc, key, bundles, report)
