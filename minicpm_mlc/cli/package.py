"""package: a bundle and how to load it, in one archive."""

from __future__ import annotations

import click

from minicpm_mlc.base import choices
from minicpm_mlc.base.streams import say
from minicpm_mlc.cli.commands import Command, example


@click.command(
    cls=Command,
    short_help="Put a bundle into one archive, to ship it.",
    **example("minicpm-mlc package ./MiniCPM4-0.5B-w4a-android --for android -o phone.zip"),
)
@click.argument("bundle", type=click.Path())
@click.option(
    "--for",
    "platform",
    type=click.Choice(choices.PACKAGE_PLATFORMS),
    required=True,
    help="Where it will run.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(),
    help="Archive to write, .zip or .tar.  [default: BUNDLE-PLATFORM]",
)
@click.option(
    "--engine",
    is_flag=True,
    help="With the engine, which answers without Python: for linux, android, ios and web.",
)
def package(bundle: str, platform: str, out: str | None, engine: bool) -> None:
    """Put BUNDLE, licences, checksums and how to load it into one archive, the same bytes each
    time.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.compile.package import package_bundle

    with show_progress() as report:
        result = package_bundle(bundle, platform, out, report, engine)
    say(str(result))
