"""compile: a checkpoint into a bundle."""

from __future__ import annotations

from typing import Any

import click

from minicpm_mlc.base import choices
from minicpm_mlc.base.streams import say
from minicpm_mlc.cli.commands import Command, example, note
from minicpm_mlc.cli.options import KV, SCHEMES, device_option


@click.command(
    "compile",
    cls=Command,
    short_help="Make a bundle of a checkpoint, for a device.",
    **example("minicpm-mlc compile ./MiniCPM4-0.5B --cpu native --quant w4"),
)
@click.argument("source", type=click.Path())
@click.option(
    "-o", "--out", type=click.Path(), help="Bundle folder to write.  [default: NAME-SCHEME-DEVICE]"
)
@device_option("What to compile for; minicpm-mlc devices lists what there is.")
@click.option(
    "--cpu",
    help="native, a level such as x86-64-v3, or a processor that LLVM knows.  [default: native "
    "for cpu]",
)
@click.option(
    "--gpu",
    help="The GPU beside an arm64 processor: cuda, opencl or vulkan.  [default: opencl for "
    "android]",
)
@click.option(
    "--with-cpu",
    is_flag=True,
    help="A second library, for the processor beside the GPU: apps run it where the GPU can't.",
)
@click.option(
    "--arch",
    help="For CUDA: all, or for example sm_87,sm_90. For Vulkan and OpenCL: dot8, where the device "
    "has the integer dot product.  [default: all]",
)
@click.option(
    "--quant",
    type=SCHEMES,
    help="How the weights are stored.  [default: w4a, with --bits w4k; of quantised weights, what "
    "holds them]",
)
@click.option(
    "--embedding-quant",
    type=SCHEMES,
    help="The same for embedding and head.  [default: w8 beside 4 and 5 bits, else as --quant]",
)
@click.option(
    "--activations",
    type=click.Choice(choices.ACTIVATIONS),
    default="auto",
    help="What meets integer weights; auto is int8 where fast.",
)
@click.option(
    "--kv", type=KV, help="How keys and values are stored.  [default: f16; f32 with --quant f32]"
)
@click.option("--context", type=int, help="Longest context, in tokens.  [default: the model's]")
@click.option(
    "--attention",
    type=click.Choice(choices.COMPILED_ATTENTION),
    default="auto",
    help="dense leaves out sparse kernels.",
)
@click.option(
    "--sparse-config",
    type=click.Path(),
    help="Settings of sparse attention, for a GGUF file, which has none: a JSON file, as the "
    "sparse_config of config.json or with one.",
)
@click.option("--prefill-chunk", type=int, help="Prompt tokens computed at a time.")
@click.option(
    "--draft",
    help="An EAGLE head's folder, for speculative decoding; or random-eagle3, random-eagle2:8192.",
)
@click.option(
    "--draft-quant", type=SCHEMES, help="How its weights are stored.  [default: as the model's]"
)
@click.option(
    "--frspec",
    type=click.Path(),
    help="The tokens it proposes: a list of minicpm-mlc frspec, or freq_*.pt.",
)
@click.option(
    "--adapter",
    "adapters",
    metavar="DIR[:WEIGHT]",
    multiple=True,
    help="A LoRA adapter's folder, or ORG/NAME, merged before the weights are stored; may be given "
    "more than once.",
)
@click.option(
    "--ternary",
    metavar="COLUMNS",
    type=int,
    help="Round linears to three values in groups of so many columns, as BitCPM's training does; "
    "for files that hold the weights before.",
)
@click.option(
    "--calibrate",
    metavar="[TEXT]",
    multiple=True,
    is_flag=False,
    flag_value="",
    help="Run the model on text, so that rounding keeps its answers: minutes for a 0.5B model. "
    "Without TEXT on texts that come with minicpm-mlc.",
)
@click.option(
    "--bits",
    type=click.FloatRange(min=1, max=32),
    help="Of a linear's weight, on average: what is left beside --quant goes to the linears that "
    "gain most, such as 4.85.",
)
@click.option(
    "--tuning",
    type=click.Path(),
    help="A table of minicpm-mlc tune: the kernels' parameters on a device.  [default: the nearest "
    "device's that comes with minicpm-mlc]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the memory it will need per context length; write nothing.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--random-weights",
    is_flag=True,
    help="Without weights: SOURCE is a published model's name or a config.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def compile_command(
    source: str,
    quant: str | None,
    embedding_quant: str | None,
    draft_quant: str | None,
    calibrate: tuple[str, ...],
    adapters: tuple[str, ...],
    draft: str | None,
    random_weights: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compile SOURCE into a bundle: a checkpoint folder, a GGUF file, a bundle, or a hub's
    ORG/NAME.

    What a folder may hold: docs/checkpoints.md. A bundle's weights are carried as they are, for
    another --device.
    """
    from minicpm_mlc.base.installed import check_compiler
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.compile import compile_model
    from minicpm_mlc.hub.pull import local_adapter, local_path, local_source

    check_compiler()
    with show_progress() as report:
        adapters = tuple(local_adapter(each, report, note) for each in adapters)
        if draft and not draft.startswith("random-"):
            draft = local_path(draft, report, note)
        origin = None
        if not random_weights:
            source, origin = local_source(source, report, note)
        result = compile_model(
            source,
            origin=origin,
            adapters=adapters,
            draft=draft,
            random_weights=random_weights,
            scheme=quant,
            embedding_scheme=embedding_quant,
            draft_scheme=draft_quant,
            calibrate=[text for text in calibrate if text] if calibrate else None,
            overwrite=force,
            progress=report,
            say=note,
            **options,
        )
    say(result.json() if as_json else result.plain())
