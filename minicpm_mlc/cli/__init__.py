"""The command line: a click command per verb, no logic. Only click, the choices and the errors are
imported before a verb runs.
"""

from __future__ import annotations

import click

from minicpm_mlc import __version__
from minicpm_mlc.cli import (
    bench,
    chat,
    compile,
    demo,
    frspec,
    hub,
    inspect,
    package,
    quality,
    rpc,
    run,
    serve,
    trace,
    tune,
    verify,
)
from minicpm_mlc.cli.commands import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="minicpm-mlc", message="%(prog)s %(version)s")
def main() -> None:
    """Compile MiniCPM4 models for a device, and chat with them there."""


for verb in (  # in the order of a user's work
    run.run,
    demo.demo,
    hub.pull,
    compile.compile_command,
    chat.chat,
    serve.serve,
    inspect.inspect,
    bench.bench,
    quality.quality,
    verify.verify,
    tune.tune,
    rpc.rpc_server,
    package.package,
    trace.trace,
    hub.list_kept,
    hub.rm,
    frspec.frspec,
    inspect.devices,
):
    main.add_command(verb)
