"""serve: a bundle over HTTP."""

from __future__ import annotations

from typing import Any

import click

from minicpm_mlc.base import choices
from minicpm_mlc.base.streams import say
from minicpm_mlc.cli.commands import Command, example
from minicpm_mlc.cli.options import ATTENTION, PORT, library_option
from minicpm_mlc.cli.trust import trust_options


@click.command(
    cls=Command,
    short_help="Answer the APIs of OpenAI, Anthropic and Ollama.",
    **example("minicpm-mlc serve ./MiniCPM4.1-8B-w4a-cpu"),
)
@click.argument("bundle", type=click.Path())
@click.option("--host", default="127.0.0.1", help="Address to listen at.")
@click.option("--port", type=PORT, default=choices.SERVE_PORT, help="0 is any free one.")
@click.option("--parallel", type=int, help="Requests that are answered at once; else up to 8.")
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=64,
    help="Requests that may wait; one more gets status 429.",
)
@click.option("--api-key", multiple=True, help="A key that clients have to show; may be repeated.")
@click.option("--api-key-file", type=click.Path(), help="The same, a key a line.")
@click.option("--name", help="The model's name.  [default: the bundle's]")
@click.option("--strict-model", is_flag=True, help="Refuse requests for a model of another name.")
@click.option(
    "--tool-format",
    type=click.Choice(("auto", *choices.TOOL_FORMATS)),
    default="auto",
    help="How the model writes calls of tools; auto asks its template.",
)
@click.option(
    "--reasoning-field",
    type=click.Choice(("reasoning_content", "reasoning")),
    default="reasoning_content",
    help="Where answers have their thinking; clients of vLLM want reasoning.",
)
@click.option(
    "--cors-origin", multiple=True, help="A page that may ask, such as https://a.b; * is all."
)
@click.option("--allowed-host", multiple=True, help="Another name of this server.")
@click.option(
    "--state",
    type=click.Path(),
    help="A folder where computed prompts are kept when the server ends, for the next one.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    help="Seconds that requests have to end in at SIGTERM.",
)
@library_option
@click.option("--context", type=int, help="Tokens of context.  [default: what memory holds]")
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@click.option("--attention", type=ATTENTION, default="auto", help="Gear; auto shifts by length.")
@click.option(
    "--draft-model",
    type=click.Path(),
    help="A smaller bundle with the same tokenizer, to draft with.",
)
@click.option(
    "--ray", is_flag=True, help="On a Ray cluster: RAY_ADDRESS's, or one of this machine alone."
)
@click.option(
    "--replicas",
    help="With --ray, N or MIN:MAX.  [default: up to one for each node, or GPU]",
)
@trust_options
def serve(
    bundle: str,
    api_key: tuple[str, ...],
    api_key_file: str | None,
    cors_origin: tuple[str, ...],
    allowed_host: tuple[str, ...],
    context: int | None,
    threads: int | None,
    attention: str,
    device: str | None,
    draft_model: str | None,
    ray: bool,
    replicas: str | None,
    **options: Any,
) -> None:
    """Answer the APIs of OpenAI, Anthropic and Ollama with BUNDLE."""
    from minicpm_mlc.serve.options import Serving, given_keys
    from minicpm_mlc.serve.server import check_libraries
    from minicpm_mlc.serve.server import serve as serve_bundle

    if replicas and not ray:
        raise click.UsageError("--replicas is for --ray; give both, or leave --replicas out.")
    check_libraries()
    keys = given_keys(api_key, api_key_file)
    serving = Serving(keys=keys, origins=cors_origin, hosts=allowed_host, **options)
    opened = {
        "context": context,
        "threads": threads,
        "attention": attention,
        "device": device,
        "draft": draft_model,
    }
    if ray:
        from minicpm_mlc.serve.ray_serve import run

        return run(bundle, serving, say, replicas, **opened)
    serve_bundle(bundle, serving, say, **opened)
