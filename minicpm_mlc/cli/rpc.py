"""A bundle that runs on another machine: its options, and rpc-server, the verb over there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from minicpm_mlc.base.streams import say
from minicpm_mlc.cli.commands import Command, example
from minicpm_mlc.cli.options import PORT

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.rpc.client import RemoteMachine

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


@click.command(
    "rpc-server",
    cls=Command,
    short_help="Let other machines run bundles here.",
    **example("minicpm-mlc rpc-server --host 0.0.0.0 --key-file ~/rpc-key"),
)
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen at; others than this machine reach it at 0.0.0.0.",
)
@click.option("--port", type=PORT, default=9090, help="0 is any free one.")
@click.option("--key", help=f"{KEY_HELP}.  [default: a random one, printed]")
@click.option("--key-file", type=click.Path(), help=KEY_FILE_HELP)
@click.option(
    "--folder",
    type=click.Path(),
    help="Where uploaded bundles are kept.  [default: in the user's cache]",
)
def rpc_server(key: str | None, key_file: str | None, **options: Any) -> None:
    """Let other machines run bundles here, with chat, bench and verify --rpc.

    Who knows the key can run any code here; nothing is encrypted.
    """
    from minicpm_mlc.runtime_py.rpc.key import given_key
    from minicpm_mlc.runtime_py.rpc.server import run_server

    run_server(say=say, key=given_key(key, key_file), **options)
