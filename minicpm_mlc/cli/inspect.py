"""inspect and devices: what a model needs, and what this machine has."""

from __future__ import annotations

import functools

import click

from minicpm_mlc.cli.commands import Command, example, print_report


@click.command(
    cls=Command,
    short_help="Sizes, memory and speed, before you download.",
    **example("minicpm-mlc inspect openbmb/MiniCPM4.1-8B"),
)
@click.argument("source", type=click.Path())
@click.option("--speed/--no-speed", default=True, help="Forecast tokens/s on this machine.")
@click.option("--measure", is_flag=True, help="Measure this machine's limits again first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(source: str, speed: bool, measure: bool, as_json: bool) -> None:
    """Show config, sizes, memory need and speed of SOURCE, before anything large is downloaded.

    SOURCE is a bundle, a checkpoint, ORG/NAME of a hub, or a published model's name. Limits of the
    machine are measured once, which takes some seconds.
    """
    from minicpm_mlc.inspect import describe, machine_limits

    limits = functools.partial(machine_limits.machine_limits, measure)
    print_report(describe.describe(source, limits if speed else None), describe.as_text, as_json)


@click.command(
    cls=Command, short_help="What this machine can compile for.", **example("minicpm-mlc devices")
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def devices(as_json: bool) -> None:
    """Show what this machine can compile for, and what is missing."""
    from minicpm_mlc.inspect.devices import as_text, survey

    print_report(survey(), as_text, as_json)
