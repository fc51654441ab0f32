"""demo: the packaged model, compiled for this machine and chatted with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from minicpm_mlc.cli.commands import Command, example
from minicpm_mlc.cli.options import chat_options
from minicpm_mlc.cli.run import compile_and_chat

MODEL = "MiniCPM4.1-demo"
PLACES = (  # in what is installed; in a checkout
    Path(__file__).parents[1] / "demo_model" / MODEL,
    Path(__file__).parents[2] / "examples" / "demo_model" / MODEL,
)


@click.command(
    cls=Command,
    short_help="Compile a small model that comes along, and chat with it.",
    **example('minicpm-mlc demo --prompt "What is 4827 + 356?"'),
)
@chat_options
def demo(**options: Any) -> None:
    """Compile the small model that comes with minicpm-mlc, and chat with it: nothing is downloaded.

    It has 2.6 million parameters, adds numbers, and finds facts in long texts.
    """
    place = next((place for place in PLACES if place.is_dir()), None)
    if place is None:
        raise click.ClickException("the demo model is not installed; pip install minicpm-mlc")
    compile_and_chat(str(place), **options)
