"""tune: the parameters of a bundle's kernels, measured on this device."""

from __future__ import annotations

from typing import Any

import click

from minicpm_mlc.base.streams import say
from minicpm_mlc.cli.commands import Command, example
from minicpm_mlc.cli.trust import trust_options


@click.command(
    cls=Command,
    short_help="Find the fastest parameters of a bundle's kernels.",
    **example("minicpm-mlc tune ./MiniCPM4-0.5B-w4a-cpu -o mine.json"),
)
@click.argument("bundle", type=click.Path())
@click.option("-o", "--out", type=click.Path(), default="tuning.json", help="The table to write.")
@click.option("--depth", default=1024, help="Tokens in the cache that attention reads.")
@click.option("--repeats", default=7, help="Measurements of each candidate.")
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@trust_options
@click.option("--json", "form", flag_value="json", help="Print the table as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
def tune(bundle: str, form: str | None, **options: Any) -> None:
    """Try the parameters that BUNDLE's kernels have on this device, and write a table of the
    fastest.

    compile --tuning TABLE builds a library with them; a bundle's weights are carried as they are.
    A candidate counts if it is right and 3 % faster. It needs the compiler.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.bench.tune import tune_bundle

    with show_progress() as report:
        result = tune_bundle(bundle, progress=report, **options)
    say(getattr(result, form or "plain")())
