"""The command line: one command per verb, no logic. Only click, the choices and the errors are
imported before a verb runs.
"""

from __future__ import annotations

import functools
from typing import Any

import click

from minicpm_mlc import __version__
from minicpm_mlc.base import choices
from minicpm_mlc.base.streams import json_text, say
from minicpm_mlc.base.text import decode_text
from minicpm_mlc.cli_hub import list_kept, pull, rm
from minicpm_mlc.cli_options import (
    ATTENTION,
    KEY_FILE_HELP,
    KEY_HELP,
    KV,
    SCHEMES,
    SPECULATE,
    Commands,
    Numbers,
    Source,
    chat_options,
    debugging,
    drafting_options,
    example,
    note,
    remote_machine,
    rpc_options,
    trust_options,
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="minicpm-mlc", message="%(prog)s %(version)s")
def main() -> None:
    """Compile MiniCPM4 models for a device, and chat with them there."""


@main.command(**example("minicpm-mlc run openbmb/MiniCPM4.1-8B"))
@click.argument("source")
@click.option("--device", default="cpu", help="What to compile for.")
@click.option("--quant", type=SCHEMES, help="How the weights are stored.  [default: as compile's]")
@click.option("--draft", help="An EAGLE head, for speculative decoding: its folder or ORG/NAME.")
@click.option("--force", is_flag=True, help="Compile again what is compiled already.")
@chat_options
@trust_options
def run(
    source: str, device: str, quant: str | None, draft: str | None, force: bool, **options: Any
) -> None:
    """Download SOURCE and compile it where that wasn't done before, then chat.

    SOURCE is a hub's ORG/NAME, a checkpoint folder or a GGUF file. list shows what is kept, pull
    fetches a newer version, rm removes. For compile's other options: compile, then chat.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.compile import compile_model
    from minicpm_mlc.hub.bundles import bundle_for
    from minicpm_mlc.hub.pull import local_path

    with show_progress() as report:

        def make(path: str, place: Any) -> None:
            head = draft and local_path(draft, report, note)
            given = {"scheme": quant, "device": device, "draft": head, "overwrite": force}
            compile_model(path, place, **given, progress=report, say=note)

        kept = {"device": device, "quant": quant, "draft": draft}  # list shows them
        bundle = bundle_for(source, kept, make, report, note, force)
    _converse(str(bundle), None, **options)


main.add_command(pull)


@main.command("compile", **example("minicpm-mlc compile ./MiniCPM4-0.5B --cpu native --quant w4"))
@click.argument("source")
@click.option(
    "-o", "--out", type=click.Path(), help="Bundle folder to write.  [default: NAME-SCHEME-DEVICE]"
)
@click.option(
    "--device", default="cpu", help="What to compile for; minicpm-mlc devices lists what there is."
)
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
@click.option("--arch", help="For CUDA: all, or for example sm_87,sm_90.  [default: all]")
@click.option(
    "--quant",
    type=SCHEMES,
    help="How the weights are stored.  [default: w4; of quantised weights, what holds them]",
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
    "gain most.",
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
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.compile import compile_model
    from minicpm_mlc.hub.pull import local_adapter, local_path

    with show_progress() as report:
        adapters = tuple(local_adapter(each, report, note) for each in adapters)
        if draft and not draft.startswith("random-"):
            draft = local_path(draft, report, note)
        result = compile_model(
            source if random_weights else local_path(source, report, note),
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


@main.command(**example('minicpm-mlc chat ./MiniCPM4-0.5B-w4-cpu --prompt "What is a page table?"'))
@click.argument("bundle", type=click.Path())
@chat_options
@rpc_options
@trust_options
def chat(
    bundle: str, rpc: str | None, key: str | None, key_file: str | None, **options: Any
) -> None:
    """Chat with BUNDLE; /help lists the commands of the chat.

    --prompt, or text from a pipe, is one question; both together are one message, the piped text
    first (start with < /dev/null where nothing is piped in). The answer goes to standard output,
    its thinking to standard error.
    """
    remote = remote_machine(rpc, key, key_file, bundle, options["draft_model"])
    _converse(bundle, remote, **options)


def _converse(
    bundle: str,
    remote: Any,
    *,
    prompt: str | None,
    system: str | None,
    context: int | None,
    threads: int | None,
    attention: str,
    draft_model: str | None,
    hide_thinking: bool,
    show_blocks: bool,
    as_json: bool,
    stats: bool,
    **options: Any,
) -> None:
    from minicpm_mlc.runtime_py.chat.repl import answer_once, given_options, read_question, talk
    from minicpm_mlc.runtime_py.device_check import check_device
    from minicpm_mlc.runtime_py.engine import Engine

    given = given_options(options)
    shared: dict[str, Any] = {
        "system": system,
        "hide_thinking": hide_thinking,
        "show_blocks": show_blocks,
    }
    question = read_question(prompt)
    opened = {"context": context, "threads": threads, "attention": attention, "draft": draft_model}
    with Engine(bundle, remote=remote, **opened) as engine:
        check_device(engine)
        if question is None:
            talk(engine, options=given, debug=debugging(click.get_current_context()), **shared)
        else:
            answer_once(
                engine, question, options=given, as_json=as_json, with_stats=stats, **shared
            )


@main.command(**example("minicpm-mlc serve ./MiniCPM4.1-8B-w4-cpu"))
@click.argument("bundle", type=click.Path())
@click.option("--host", default="127.0.0.1", help="Address to listen at.")
@click.option("--port", default=8000, help="0 is any free one.")
@click.option("--parallel", type=int, help="Requests that are answered at once; else up to 8.")
@click.option("--max-waiting", default=64, help="Requests that may wait; one more gets status 429.")
@click.option("--api-key", multiple=True, help="A key that clients have to show; may be repeated.")
@click.option("--api-key-file", type=click.Path(), help="The same, a key a line.")
@click.option("--name", help="The model's name.  [default: the bundle's]")
@click.option("--strict-model", is_flag=True, help="Refuse requests for a model of another name.")
@click.option(
    "--tool-format",
    type=click.Choice(("auto", *choices.TOOL_FORMATS)),
    default="auto",
    help="How the model writes calls of tools; auto asks its template.",
)
@click.option(
    "--reasoning-field",
    type=click.Choice(("reasoning_content", "reasoning")),
    default="reasoning_content",
    help="Where answers have their thinking; clients of vLLM want reasoning.",
)
@click.option(
    "--cors-origin", multiple=True, help="A page that may ask, such as https://a.b; * is all."
)
@click.option("--allowed-host", multiple=True, help="Another name of this server.")
@click.option(
    "--state",
    type=click.Path(),
    help="A folder where computed prompts are kept when the server ends, for the next one.",
)
@click.option("--grace", default=10.0, help="Seconds that requests have to end in at SIGTERM.")
@click.option("--context", type=int, help="Tokens of context.  [default: what memory holds]")
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@click.option("--attention", type=ATTENTION, default="auto", help="Gear; auto shifts by length.")
@click.option(
    "--draft-model",
    type=click.Path(),
    help="A smaller bundle with the same tokenizer, to draft with.",
)
@trust_options
def serve(
    bundle: str,
    api_key: tuple[str, ...],
    api_key_file: str | None,
    cors_origin: tuple[str, ...],
    allowed_host: tuple[str, ...],
    context: int | None,
    threads: int | None,
    attention: str,
    draft_model: str | None,
    **options: Any,
) -> None:
    """Answer the APIs of OpenAI, Anthropic and Ollama with BUNDLE."""
    from minicpm_mlc.serve.server import Serving, given_keys
    from minicpm_mlc.serve.server import serve as serve_bundle

    keys = given_keys(api_key, api_key_file)
    serving = Serving(keys=keys, origins=cors_origin, hosts=allowed_host, **options)
    opened = {"context": context, "threads": threads, "attention": attention, "draft": draft_model}
    serve_bundle(bundle, serving, say, **opened)


@main.command(**example("minicpm-mlc inspect openbmb/MiniCPM4.1-8B"))
@click.argument("source")
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
    _print(describe.describe(source, limits if speed else None), describe.as_text, as_json)


@main.command(**example("minicpm-mlc bench ./MiniCPM4-0.5B-w4-cpu --depth 0,1024 --markdown"))
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
    help="Where the time of one decode step goes, operator by operator.",
)
@click.option(
    "--random-cache",
    is_flag=True,
    help="Fill the cache with random numbers instead of computing the tokens.",
)
@click.option(
    "--plot", type=click.Path(), help="Measure both gears and draw them into this SVG file."
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


@main.command(**example("minicpm-mlc quality ./MiniCPM4-0.5B-w4-cpu --reference ./MiniCPM4-0.5B"))
@click.argument("bundle", type=click.Path())
@click.option(
    "--reference",
    type=click.Path(),
    required=True,
    help="What is exact: a checkpoint, compiled to f32 for this, or a bundle.",
)
@click.option(
    "--text",
    "texts",
    type=click.Path(),
    multiple=True,
    help="A text to compare on; repeatable.  [default: one that comes with minicpm-mlc]",
)
@click.option("--tokens", default=2048, help="Most tokens of each text.")
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@click.option("--attention", type=ATTENTION, default="auto", help="Of both.")
@trust_options
@click.option("--json", "form", flag_value="json", help="Print one JSON object.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
def quality(form: str | None, **options: Any) -> None:
    """Measure how far BUNDLE's answers are from the unquantised model's.

    Kullback-Leibler divergence, how often the likeliest token is the same, perplexity, and the
    error of the residual stream layer by layer.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.bench.quality import bench_quality

    with show_progress() as report:
        result = bench_quality(
            progress=report, say=lambda note: click.echo(note, err=True), **options
        )
    say(getattr(result, form or "plain")())


@main.command(**example("minicpm-mlc verify ./MiniCPM4-0.5B-w4-cpu"))
@click.argument("bundle", type=click.Path())
@click.option(
    "--expect",
    type=click.Path(),
    help="The --json report of another device, whose tokens this one must give.",
)
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


@main.command("rpc-server", **example("minicpm-mlc rpc-server --host 0.0.0.0 --key-file ~/rpc-key"))
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen at; others than this machine reach it at 0.0.0.0.",
)
@click.option("--port", default=9090, help="0 is any free one.")
@click.option("--key", help=f"{KEY_HELP}.  [default: a random one, printed]")
@click.option("--key-file", type=click.Path(), help=KEY_FILE_HELP)
@click.option(
    "--folder",
    type=click.Path(),
    help="Where uploaded bundles are kept.  [default: in the user's cache]",
)
def rpc_server(key: str | None, key_file: str | None, **options: Any) -> None:
    """Let other machines run bundles here, with chat, bench and verify --rpc.

    Who knows the key can run any code here; nothing is encrypted.
    """
    from minicpm_mlc.runtime_py.rpc.key import given_key
    from minicpm_mlc.runtime_py.rpc.server import run_server

    run_server(say=say, key=given_key(key, key_file), **options)


@main.command(
    **example("minicpm-mlc package ./MiniCPM4-0.5B-w4-android --for android -o phone.zip")
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
def package(bundle: str, platform: str, out: str | None) -> None:
    """Put BUNDLE, licences, checksums and how to load it into one archive, the same bytes each
    time.
    """
    from minicpm_mlc.base.progress import show_progress
    from minicpm_mlc.compile.package import package_bundle

    with show_progress() as report:
        result = package_bundle(bundle, platform, out, report)
    say(str(result))


@main.command(
    **example("minicpm-mlc trace ./MiniCPM4.1-8B-w4-cpu --prompt-file question.txt -o trace.html")
)
@click.argument("bundle", type=click.Path())
@click.option(
    "--prompt-file",
    type=click.File("rb"),
    required=True,
    help="The message: document and question.",
)
@click.option("-o", "--out", type=click.Path(), default="trace.html", help="Page to write.")
@click.option("--max-tokens", default=128, help="Longest answer, in tokens.")
@click.option(
    "--context", type=int, help="Tokens of context.  [default: all that the model and memory allow]"
)
@click.option("--threads", type=int, help="Threads.  [default: the physical cores]")
@click.option("--attention", type=ATTENTION, default="auto", help="sparse shows short prompts too.")
@trust_options
def trace(bundle: str, prompt_file: Any, out: str, max_tokens: int, **options: Any) -> None:
    """Show which blocks of a document each answer token of BUNDLE read, as one HTML page.

    It shows selection, not attribution.
    """
    from minicpm_mlc.inspect.trace import trace as record
    from minicpm_mlc.inspect.trace_page import as_html, write_page
    from minicpm_mlc.runtime_py.engine import Engine

    question = {"role": "user", "content": decode_text(prompt_file.read())}
    with Engine(bundle, **options) as engine:
        result = record(engine, [question], max_tokens)
    write_page(out, as_html(result))
    say(f"wrote {out}: {len(result.reads)} answer tokens over {len(result.blocks)} blocks")


main.add_command(list_kept)
main.add_command(rm)

FRSPEC = example(
    "minicpm-mlc frspec build --text ./notes --size 8192 --tokenizer ./MiniCPM4-8B -o freq.json"
)


@main.group(cls=Commands, **FRSPEC)
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
    _print(result, as_text, as_json)


@main.command(**example("minicpm-mlc devices"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def devices(as_json: bool) -> None:
    """Show what this machine can compile for, and what is missing."""
    from minicpm_mlc.inspect.devices import as_text, survey

    _print(survey(), as_text, as_json)


def _print(report: dict[str, Any], as_text: Any, as_json: bool) -> None:
    say(json_text(report, indent=1) if as_json else as_text(report))
