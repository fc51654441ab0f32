"""run: download, compile and chat in one."""

from __future__ import annotations

from typing import Any

import click

from minicpm_mlc.cli.chat import converse
from minicpm_mlc.cli.commands import Command, example, note
from minicpm_mlc.cli.options import SCHEMES, chat_options, device_option
from minicpm_mlc.cli.trust import trust_options


@click.command(
    cls=Command,
    short_help="Download, compile and chat, all in one.",
    **example("minicpm-mlc run openbmb/MiniCPM4.1-8B"),
)
@click.argument("source", type=click.Path())
@device_option("What to compile for.")
@click.option("--quant", type=SCHEMES, help="How the weights are stored.  [default: as compile's]")
@click.option("--draft", help="An EAGLE head, for speculative decoding: its folder or ORG/NAME.")
@click.option("--force", is_flag=True, help="Compile again what is compiled already.")
@chat_options
@trust_options
def run(source: str, **options: Any) -> None:
    """Download SOURCE and compile it where that wasn't done before, then chat.

    SOURCE is a hub's ORG/NAME, a checkpoint folder or a GGUF file. list shows what is kept, pull
    fetches a newer version, rm removes. For compile's other options: compile, then chat.
    """
    compile_and_chat(source, **options)


def compile_and_chat(
    source: str,
    device: str = "cpu",
    quant: str | None = None,
    draft: str | None = None,
    force: bool = False,
    **options: Any,
) -> None:
    """Chats with the bundle of a source, which is made where it isn't kept; `options` are those of
    chat.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.compile import compile_model
    from minicpm_mlc.hub.bundles import bundle_for
    from minicpm_mlc.hub.pull import local_path

    with show_progress() as report:

        def make(path: str, place: Any, origin: str | None) -> None:
            head = draft and local_path(draft, report, note)
            given = {"scheme": quant, "device": device, "draft": head, "overwrite": force}
            compile_model(path, place, **given, origin=origin, progress=report, say=note)

        kept = {"device": device, "quant": quant, "draft": draft}  # list shows them
        bundle = bundle_for(source, kept, make, report, note, force)
    converse(str(bundle), None, **options)
