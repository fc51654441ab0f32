"""bench: how fast a bundle is."""

from __future__ import annotations

from typing import Any

import click

from minicpm_mlc.base.streams import say
from minicpm_mlc.cli.commands import Command, example
from minicpm_mlc.cli.options import ATTENTION, KV, SPECULATE, Numbers, drafting_options
from minicpm_mlc.cli.rpc import remote_machine, rpc_options
from minicpm_mlc.cli.trust import trust_options


@click.command(
    cls=Command,
    short_help="Measure tokens/s, beside the limits of the hardware.",
    **example("minicpm-mlc bench ./MiniCPM4-0.5B-w4a-cpu --depth 0,1024 --markdown"),
)
@click.argument("bundle", type=click.Path(), required=False)
@click.option(
    "--depth",
    type=Numbers(),
    help="Tokens already in the cache, separated by commas.  [default: 0,1024]",
)
@click.option(
    "--prompt-tokens",
    type=Numbers(),
    default="512",
    help="Tokens prefilled per measurement; 512,2048 for two rows, 0 for none.",
)
@click.option("--new-tokens", default=64, help="Tokens decoded per measurement; 0 for none.")
@click.option("--repeats", default=3, help="Measurements per row.")
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@click.option(
    "--attention",
    type=ATTENTION,
    default="auto",
    help="auto is sparse from the model's dense_len tokens on.",
)
@click.option(
    "--attention-only",
    is_flag=True,
    help="No bundle: the 8B models' kernels, both gears; --depth is 32768,131072.",
)
@click.option(
    "--kv", type=KV, default="f16", help="With --attention-only: how keys and values are stored."
)
@click.option(
    "--operators",
    is_flag=True,
    help="Where the time of a prefill and of one decode step goes, operator by operator.",
)
@click.option(
    "--random-cache",
    is_flag=True,
    help="Fill the cache with random numbers instead of computing the tokens.",
)
@click.option(
    "--plot",
    type=click.Path(),
    help="Measure both gears and draw them into this .svg or .png file.",
)
@click.option(
    "--speculate", type=SPECULATE, help="Speculative decoding against plain, with this drafter."
)
@drafting_options
@click.option(
    "--prompt-file",
    type=click.Path(),
    help="With --speculate: a message a line, answered by the model itself.",
)
@click.option(
    "--replay",
    type=click.Path(),
    help="With --speculate DRAFTER: take what is accepted from its record.",
)
@click.option(
    "--record", type=click.Path(), help="With --prompt-file and a drafter: write what was accepted."
)
@rpc_options
@trust_options
@click.option("--json", "form", flag_value="json", help="Print one JSON object.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
@click.pass_context
def bench(ctx: click.Context, form: str | None, **_: Any) -> None:
    """Measure prefill and decode tokens/s of BUNDLE, and how near decode comes to the speed of
    memory.
    """
    from minicpm_mlc.bench.modes import mode_and_options

    mode, options = mode_and_options(ctx)
    if mode == "attention_only":
        from minicpm_mlc.bench.attention import bench_attention as measure
    elif mode == "operators":
        from minicpm_mlc.bench.operators import bench_operators as measure
    elif mode == "speculate":
        from minicpm_mlc.bench.speculation import bench_speculation as measure
    elif mode == "plot":
        from minicpm_mlc.bench.plot import bench_both_gears as measure

    else:
        from minicpm_mlc.bench.decode import bench_bundle as measure

        place = [options.pop(name) for name in ("rpc", "key", "key_file")]
        options["remote"] = remote_machine(*place, options["path"])
    say(getattr(measure(**options), form or "plain")())
    if mode == "plot":
        click.echo(f"wrote {options['picture']}", err=True)
