"""verify: whether a bundle's files are whole and its kernels right."""

from __future__ import annotations

from typing import Any

import click

from minicpm_mlc.base.streams import say
from minicpm_mlc.cli.commands import Command, example
from minicpm_mlc.cli.options import library_option
from minicpm_mlc.cli.rpc import remote_machine, rpc_options
from minicpm_mlc.cli.trust import trust_options


@click.command(
    cls=Command,
    short_help="Check every kernel of a bundle on its device.",
    **example("minicpm-mlc verify ./MiniCPM4-0.5B-w4a-cpu"),
)
@click.argument("bundle", type=click.Path())
@click.option(
    "--expect",
    type=click.Path(),
    help="The --json report of another device, whose tokens this one must give.",
)
@library_option
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@click.option(
    "--files-only",
    is_flag=True,
    help="Run nothing: hold every file against the manifest, nothing else.",
)
@rpc_options
@trust_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    bundle: str,
    rpc: str | None,
    key: str | None,
    key_file: str | None,
    files_only: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Check every kernel of BUNDLE on its device against exact answers stored in it, and a short
    generation.

    Status 1 and the operator's name if one is wrong. This runs the bundle, and tells nothing about
    its maker.
    """
    from minicpm_mlc.base.progress import show_progress

    if files_only:
        from minicpm_mlc.runtime_py.verify_files import verify_files

        if rpc or options["expect"]:
            raise click.UsageError("--files-only runs nothing: leave out --rpc and --expect.")
        files = verify_files(bundle)
        say(files.json() if as_json else files.plain())
        return
    from minicpm_mlc.runtime_py.verify import verify_bundle

    remote = remote_machine(rpc, key, key_file, bundle)
    with show_progress() as report:
        result = verify_bundle(bundle, remote=remote, progress=report, **options)
    say(result.json() if as_json else result.plain())
    result.raise_if_failed()
