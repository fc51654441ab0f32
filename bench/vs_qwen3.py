"""A MiniCPM4 beside the Qwen3 of its size, both in this engine, on the same threads, taking turns
in one run: memory of the cache, prefill and decode behind a context, in both gears, and with
speculation at the accept lengths of a record.

    python bench/vs_qwen3.py --layers 4 --depth 0,32768 --random-cache --prompt-tokens 0
    python bench/vs_qwen3.py --size 0.5B --depth 0,8192 --random-cache --markdown
    python bench/acceptance.py 0.58,0.34,0.22 > published.json
    python bench/vs_qwen3.py --random-cache --speculate published.json --plot vs_qwen3.png

Both shapes are the published ones with random weights of the same bits and the same cache.
`--layers` of MiniCPM's layers are measured, and of Qwen3's the same share; memory is told of the
whole models. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shapes import shape, write_source
from sides import Remote, ours, speculating
from vs_llama import add_measuring_options, compile_unless_there

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench import decode as bench
from minicpm_mlc.bench.decode import GEARS
from minicpm_mlc.bench.limits import measure_limits, memory_reader
from minicpm_mlc.bench.plot import check_picture, figure_class, write_figure
from minicpm_mlc.bench.replay import Record
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bench.speed_report import SpeedRow
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.state import bytes_per_token, model_state
from minicpm_mlc.ops.formats.kv import KV_FORMATS, KVFormat
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.machine import cpu_name
from minicpm_mlc.runtime_py.speculative.eagle import READ_TOKENS
from minicpm_mlc.runtime_py.token_tree import MAX_NODES
from minicpm_mlc.runtime_py.traffic import Traffic, bundle_traffic

HEAD = "random-eagle3:32768"  # the published head's shape and vocabulary
PAIRS = {"8B": ("MiniCPM4.1-8B", "Qwen3-8B"), "0.5B": ("MiniCPM4-0.5B", "Qwen3-0.6B")}


@dataclass(frozen=True)
class Rivals:
    """The shapes that are measured."""

    ours: ModelConfig
    theirs: ModelConfig

    @staticmethod
    def of(size: str, layers: int | None, sparse: bool) -> Rivals:
        """The pair of a size; `layers` of ours and the same share of theirs."""
        first, second = (PRESETS[name] for name in PAIRS[size])
        share = layers and max(1, round(layers * second.num_layers / first.num_layers))
        return Rivals(shape(first.name, layers, sparse), shape(second.name, share))


@dataclass(frozen=True)
class Side:
    """One way to run; `traffic` of a decode step where one makes one token."""

    clock: Remote
    traffic: Traffic | None

    def with_traffic(self, row: SpeedRow) -> SpeedRow:
        """The row with its gear and a decode's GB/s, where these are told."""
        return bench.with_traffic(row, self.traffic) if self.traffic else row


@dataclass(frozen=True)
class Comparison:
    """The rows of every side, line by line; the last side is Qwen3, which the others are held
    against. `cache` holds the whole models' cache in bytes a token.
    """

    device: str
    limits: Limits
    kv: str
    command: str
    cache: dict[str, int]
    sides: dict[str, list[SpeedRow]]

    def head(self) -> str:
        """What was measured, and on what."""
        (first, mine), (second, theirs) = self.cache.items()
        measured = f"{' and '.join(self.sides)}; random weights of 4 bits, {self.kv} cache"
        return (
            f"{measured}; {self.device}, {self.limits.text()}. A token of cache takes {mine} bytes "
            f"in {first}, {theirs} in {second}: {mine / theirs:.1%}."
        )

    def cells(self) -> list[list[str]]:
        """The table: tokens/s of each side, and how many times Qwen3's the others' are."""
        *others, last = self.sides
        head = ["phase", "depth", "tokens", "cache, GiB", *(f"{s} tokens/s" for s in self.sides)]
        head += [f"{side} to {last}" for side in others]
        return [head, *map(self._line, zip(*self.sides.values(), strict=True))]

    def _line(self, rows: tuple[SpeedRow, ...]) -> list[str]:
        speeds = [row.tokens_per_second for row in rows]
        first = rows[0]
        gib = [each * first.depth / 2**30 for each in self.cache.values()]
        return [
            first.phase,
            f"{first.depth}",
            f"{first.tokens}",
            " / ".join(f"{each:.2f}" for each in gib),
            *(f"{speed:.1f}" for speed in speeds),
            *(f"{speed / speeds[-1]:.2f}x" for speed in speeds[:-1]),
        ]

    def plain(self) -> str:
        """For a terminal."""
        return f"{self.head()}\n\n{plain_table(self.cells())}"

    def markdown(self) -> str:
        """As Markdown."""
        return f"{self.head()}\n\n`{self.command}`\n\n{markdown_table(self.cells())}"

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2)


def bundle_of(config: ModelConfig, kv: str, work: Path, head: bool = False) -> Path:
    """The compiled shape, with a draft head or without, built in `work` unless it is there."""
    work.mkdir(parents=True, exist_ok=True)
    bundle = work / f"{config.name}-w4-{kv}{'-eagle3' if head else ''}-cpu"
    options = ["--random-weights", "--quant", "w4", "--embedding-quant", "w4", "--kv", kv]
    options += ["--draft", HEAD] if head else []
    compile_unless_there(bundle, str(write_source(config, work)), *options)
    return bundle


def cache_bytes(config: ModelConfig, kv: str) -> int:
    """Of a token in all layers of the published shape."""
    whole = replace(config, num_layers=PRESETS[preset_of(config.name)].num_layers)
    return bytes_per_token(model_state(whole, KVFormat.named(kv)))


def preset_of(name: str) -> str:
    """The preset that a shape or its bundle was made of: the longest that its name begins with."""
    return max((preset for preset in PRESETS if name.startswith(preset)), key=len)


def sides_of(
    args: argparse.Namespace, rivals: Rivals, bundles: tuple[Path, Path], context: int
) -> dict[str, Side]:
    """A process for each way to run; Qwen3's is the last."""
    mine, theirs = bundles
    first, second = (preset_of(config.name) for config in (rivals.ours, rivals.theirs))
    gears = GEARS if rivals.ours.sparse else GEARS[:1]

    def plain(path: Path, gear: str) -> Side:
        traffic = bundle_traffic(bundle := read_bundle(path), Gears.of(bundle.manifest, gear))
        arguments = (str(path), context, args.threads, gear, args.random_cache)
        return Side(Remote(ours, *arguments), traffic)

    sides = {f"{first} {gear}": plain(mine, gear) for gear in gears}
    if args.speculate:
        arguments = (str(mine), context, args.threads, gears[-1], args.speculate)
        sides[f"{first} {gears[-1]}, speculating"] = Side(Remote(speculating, *arguments), None)
    return sides | {f"{second} dense": plain(theirs, "dense")}


def compare(args: argparse.Namespace) -> Comparison:
    """Both models at each depth. Raises BenchError for counts and depths that can't be, ReplayError
    for the record, PlotError for the picture's file.
    """
    bench.need_positive(repeats=args.repeats, threads=args.threads)
    bench.need_depths(args.depths)
    if args.speculate:
        Record.read(args.speculate)
    if args.plot:
        check_picture(args.plot)
    context = bench.room_needed(args.depths, args.prompt_tokens, args.new_tokens)
    context += READ_TOKENS + MAX_NODES  # what a head reads behind the depth, and its trees
    rivals = Rivals.of(args.size, args.layers, args.sparse)
    mine = bundle_of(rivals.ours, args.kv, args.work, bool(args.speculate))
    bundles = mine, bundle_of(rivals.theirs, args.kv, args.work)
    reader = memory_reader(args.threads)
    limits = measure_limits(args.threads, reader)
    sides = sides_of(args, rivals, bundles, context)
    counts = (args.depths, args.prompt_tokens, args.new_tokens, args.repeats)
    clocks = {name: side.clock for name, side in sides.items()}
    rows = bench.measure(clocks, *counts, lambda: reader.sample(bench.READS))
    rows = {name: [side.with_traffic(row) for row in rows[name]] for name, side in sides.items()}
    limits = replace(limits, bandwidth=reader.best)
    cache = {
        preset_of(config.name): cache_bytes(config, args.kv)
        for config in (rivals.ours, rivals.theirs)
    }
    command = shlex.join(["python", "bench/vs_qwen3.py", *sys.argv[1:]])
    return Comparison(cpu_name(), limits, args.kv, command, cache, rows)


def draw(comparison: Comparison, path: Path) -> None:
    """Tokens/s of each side and the cache's size over the context, as an SVG or PNG file. Raises
    PlotError.
    """
    every = [row for rows in comparison.sides.values() for row in rows]
    phases = list(dict.fromkeys((row.phase, row.tokens) for row in every))
    height = 3 * (len(phases) + 1)
    figure = figure_class()(figsize=(8, height), layout="constrained")
    *speeds, memory = figure.subplots(len(phases) + 1, 1, sharex=True)
    for axis, phase in zip(speeds, phases, strict=True):
        for name, rows in comparison.sides.items():
            points = [row for row in rows if (row.phase, row.tokens) == phase]
            axis.plot(*curve(points), marker="o", label=name)
        axis.set(ylabel=f"{phase[0]} of {phase[1]}, tokens/s", ylim=(0, None))
    depths = sorted({row.depth for row in every})
    for name, nbytes in comparison.cache.items():
        memory.plot(depths, [depth * nbytes / 2**30 for depth in depths], marker="o", label=name)
    memory.set(ylabel="cache, GiB", xlabel="tokens in the cache", ylim=(0, None))
    for axis in (*speeds, memory):
        axis.legend()
    write_figure(figure, path)


def curve(rows: list[SpeedRow]) -> tuple[list[int], list[float]]:
    """Depths, and tokens/s at each."""
    return [row.depth for row in rows], [row.tokens_per_second for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=PAIRS, default="8B")
    parser.add_argument("--layers", type=int, help="of MiniCPM's layers, instead of all")
    parser.add_argument(
        "--sparse", action="store_true", help="give the 0.5B the published sparse attention"
    )
    parser.add_argument("--kv", choices=KV_FORMATS, default="f16", help="of both caches")
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where the bundles are kept"
    )
    parser.add_argument(
        "--speculate",
        metavar="RECORD",
        help="also with an EAGLE head, at the accept lengths of a record (bench/acceptance.py)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .svg or .png")
    add_measuring_options(parser, depths=[0, 8192, 32768], new_tokens=16, repeats=3)
    args = parser.parse_args()
    if args.speculate and not args.random_cache:
        parser.error("--speculate measures behind random numbers; give --random-cache too")
    try:
        result = compare(args)
        if args.plot:
            draw(result, args.plot)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    print(result.json() if args.json else result.markdown() if args.markdown else result.plain())


if __name__ == "__main__":
    main()
