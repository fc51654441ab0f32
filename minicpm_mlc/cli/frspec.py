"""frspec build: a list of the tokens that a draft head proposes."""

from __future__ import annotations

import click

from minicpm_mlc.cli.commands import Commands, example, print_report

FRSPEC = example(
    "minicpm-mlc frspec build --text ./notes --size 8192 --tokenizer ./MiniCPM4-8B -o freq.json"
)


class Source(click.Path):
    """A path whose absence is told with what to give."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What to give for an option that was left out."""
        return (
            "Give the checkpoint or bundle whose tokens are counted, for example --tokenizer "
            "./MiniCPM4-8B"
        )


@click.group(cls=Commands, short_help="List frequent tokens, for a faster draft head.", **FRSPEC)
def frspec() -> None:
    """Lists of the most frequent tokens, for a faster draft head."""


@frspec.command("build", **FRSPEC)
@click.option(
    "--text",
    type=click.Path(),
    multiple=True,
    required=True,
    help="Folder or file of UTF-8 text; repeatable.",
)
@click.option("--size", default=32768, help="How many tokens the list has.")
@click.option(
    "--tokenizer",
    type=Source(),
    required=True,
    help="A checkpoint or bundle, for its tokenizer and its shape.",
)
@click.option(
    "-o", "--out", type=click.Path(), default="freq.json", help="List to write, .json or .npy."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def frspec_build(text: tuple[str, ...], size: int, tokenizer: str, out: str, as_json: bool) -> None:
    """List the commonest tokens of your own text.

    Prints how much of the text held out they cover, and what the list saves a draft head on this
    machine's CPU.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.inspect.frspec_build import as_text, build_and_time

    with show_progress() as report:
        result = build_and_time(text, size, tokenizer, out, report)
    print_report(result, as_text, as_json)
