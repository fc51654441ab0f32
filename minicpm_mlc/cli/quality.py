"""quality: how far a bundle's answers are from the exact model's."""

from __future__ import annotations

from typing import Any

import click

from minicpm_mlc.base.streams import say
from minicpm_mlc.cli.commands import Command, example
from minicpm_mlc.cli.options import ATTENTION
from minicpm_mlc.cli.trust import trust_options


@click.command(
    cls=Command,
    short_help="Measure what smaller weights cost the answers.",
    **example("minicpm-mlc quality ./MiniCPM4-0.5B-w4a-cpu --reference ./MiniCPM4-0.5B"),
)
@click.argument("bundle", type=click.Path())
@click.option(
    "--reference",
    type=click.Path(),
    required=True,
    help="What is exact: a checkpoint, compiled to f32 for this, or a bundle.",
)
@click.option(
    "--draft",
    type=click.Path(),
    help="The draft head of a checkpoint that is the reference: accept lengths are compared.",
)
@click.option(
    "--text",
    "texts",
    type=click.Path(),
    multiple=True,
    help="A text to compare on; repeatable.  [default: one that comes with minicpm-mlc]",
)
@click.option("--tokens", default=2048, help="Most tokens of each text.")
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@click.option("--attention", type=ATTENTION, default="auto", help="Of both.")
@trust_options
@click.option("--json", "form", flag_value="json", help="Print one JSON object.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
def quality(form: str | None, **options: Any) -> None:
    """Measure how far BUNDLE's answers are from the unquantised model's.

    Kullback-Leibler divergence, how often the likeliest token is the same, perplexity, the error of
    the residual stream layer by layer, and where there are draft heads, how many tokens they bring.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.bench.quality import bench_quality

    with show_progress() as report:
        result = bench_quality(
            progress=report, say=lambda note: click.echo(note, err=True), **options
        )
    say(getattr(result, form or "plain")())
