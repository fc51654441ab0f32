"""chat: a conversation with a bundle, or one question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from minicpm_mlc.cli.commands import Command, debugging, example
from minicpm_mlc.cli.options import chat_options, library_option
from minicpm_mlc.cli.rpc import remote_machine, rpc_options
from minicpm_mlc.cli.trust import trust_options

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.rpc.client import RemoteMachine


@click.command(
    cls=Command,
    short_help="Talk to a bundle, or ask it one question.",
    **example('minicpm-mlc chat ./MiniCPM4-0.5B-w4a-cpu --prompt "What is a page table?"'),
)
@click.argument("bundle", type=click.Path())
@library_option
@chat_options
@rpc_options
@trust_options
def chat(
    bundle: str,
    rpc: str | None,
    key: str | None,
    key_file: str | None,
    device: str | None,
    **options: Any,
) -> None:
    """Chat with BUNDLE; /help lists the commands of the chat.

    --prompt, or text from a pipe, is one question; both together are one message, the piped text
    first (start with < /dev/null where nothing is piped in). The answer goes to standard output,
    its thinking to standard error.
    """
    remote = remote_machine(rpc, key, key_file, bundle, options["draft_model"])
    converse(bundle, remote, device, **options)


def converse(
    bundle: str, remote: RemoteMachine | None, device: str | None = None, **options: Any
) -> None:
    """Opens `bundle`, and answers the question that the options or a pipe hold, or else talks."""
    from minicpm_mlc.runtime_py.chat.repl import (
        Look,
        answer_once,
        conversation_of,
        given_options,
        read_question,
        talk,
        text_or_file,
    )
    from minicpm_mlc.runtime_py.chat.saved import last_chat
    from minicpm_mlc.runtime_py.device_check import check_device
    from minicpm_mlc.runtime_py.engine import Engine

    take = options.pop
    opened = {name: take(name) for name in ("context", "threads", "attention")}
    opened["draft"] = take("draft_model")
    look = Look(
        **{name: take(name) for name in ("hide_thinking", "show_blocks", "markdown", "stats")},
        debug=debugging(click.get_current_context()),
    )
    load, go_on, as_json = take("load"), take("go_on"), take("as_json")
    role, asked = ((take(name), take(f"{name}_file")) for name in ("system", "prompt"))
    given = given_options(options)
    shared: dict[str, Any] = {
        "options": given,
        "system": text_or_file(*role, "--system"),
        "look": look,
        "saved": conversation_of(load, go_on),
    }
    question = read_question(text_or_file(*asked, "--prompt"))
    with Engine(bundle, remote=remote, device=device, **opened) as engine:
        check_device(engine)
        if question is None:
            talk(engine, **shared)
        else:
            kept_in = last_chat() if go_on else None
            answer_once(engine, question, as_json=as_json, kept_in=kept_in, **shared)
