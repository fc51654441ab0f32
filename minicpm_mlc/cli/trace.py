"""trace: what a bundle's sparse attention read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from minicpm_mlc.base.streams import read_piped, read_text, say
from minicpm_mlc.cli.commands import Command, example
from minicpm_mlc.cli.options import ATTENTION
from minicpm_mlc.cli.trust import trust_options


@click.command(
    cls=Command,
    short_help="Show which parts of a document an answer read.",
    **example("minicpm-mlc trace ./MiniCPM4.1-8B-w4a-cpu --prompt-file question.txt -o trace.html"),
)
@click.argument("bundle", type=click.Path())
@click.option(
    "--prompt-file",
    type=click.Path(),
    required=True,
    help="The message: document and question; - is standard input.",
)
@click.option("-o", "--out", type=click.Path(), default="trace.html", help="Page to write.")
@click.option("--max-tokens", default=128, help="Longest answer, in tokens.")
@click.option(
    "--context", type=int, help="Tokens of context.  [default: all that the model and memory allow]"
)
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@click.option("--attention", type=ATTENTION, default="auto", help="sparse shows short prompts too.")
@trust_options
def trace(bundle: str, prompt_file: str, out: str, max_tokens: int, **options: Any) -> None:
    """Show which blocks of a document each answer token of BUNDLE read, as one HTML page.

    It shows selection, not attribution.
    """
    from minicpm_mlc.base.errors import EngineError
    from minicpm_mlc.base.files import check_place
    from minicpm_mlc.inspect.trace import trace as record
    from minicpm_mlc.inspect.trace_page import as_html, write_page
    from minicpm_mlc.runtime_py.engine import Engine

    check_place(out, "-o", EngineError)
    text = read_piped() if prompt_file == "-" else read_text(Path(prompt_file))
    question = {"role": "user", "content": text}
    with Engine(bundle, **options) as engine:
        result = record(engine, [question], max_tokens)
    write_page(out, as_html(result))
    say(f"wrote {out}: {len(result.reads)} answer tokens over {len(result.blocks)} blocks")
