"""The verbs about what is kept on this machine: pull, list and rm."""

from __future__ import annotations

import click

from minicpm_mlc.base.streams import json_text, say
from minicpm_mlc.cli.commands import Command, example, note


@click.command(
    cls=Command,
    short_help="Only download a model.",
    **example("minicpm-mlc pull openbmb/MiniCPM4.1-8B-GGUF:Q4_K_M"),
)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def pull(name: str, as_json: bool) -> None:
    """Download what is needed of NAME: ORG/NAME of Hugging Face, or modelscope:ORG/NAME.

    @REVISION and :QUANTISATION, :FILE or :FOLDER may follow. What came already stays: type the same
    command after a broken one.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.hub.pull import pull_source

    with show_progress() as report:
        result = pull_source(name, report, note)
    say(result.json() if as_json else result.plain())


@click.command(
    "list",
    cls=Command,
    short_help="List what was downloaded and compiled.",
    **example("minicpm-mlc list"),
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_kept(as_json: bool) -> None:
    """List what is kept: models that were downloaded, and bundles that run compiled."""
    from minicpm_mlc.hub.kept import as_text, kept

    found = kept()
    say(json_text([one.facts() for one in found], indent=1) if as_json else as_text(found))


@click.command(
    cls=Command,
    short_help="Remove what is kept of a model.",
    **example("minicpm-mlc rm openbmb/MiniCPM4.1-8B --downloads"),
)
@click.argument("name")
@click.option("--bundles", "kind", flag_value="bundle", help="Bundles only.")
@click.option("--downloads", "kind", flag_value="download", help="Downloads only.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def rm(name: str, kind: str | None, yes: bool) -> None:
    """Remove what is kept of NAME, as list shows it: bundles that run compiled, and files that came
    by pull, compile or run. What other programs downloaded stays.
    """
    from minicpm_mlc.base.text import human_bytes
    from minicpm_mlc.hub.kept import as_text, chosen, take_away

    found = chosen(name, kind)
    if not yes:
        click.confirm(f"{as_text(found)}\nRemove?", abort=True, err=True)
    say(f"{human_bytes(take_away(found))} are free again")
