"""minicpm-mlc and llama.cpp side by side, on the same threads, taking turns in one run: one shape
with random 4-bit weights, or one GGUF file, of which both also tell the perplexity of a text.

    python bench/vs_llama.py --work build/bench --markdown
    python bench/vs_llama.py --gguf MODEL.gguf --markdown
    python bench/vs_llama.py --preset MiniCPM4.1-8B --layers 4 --depth 32768,131072 \\
        --random-cache --prompt-tokens 0
    python bench/vs_llama.py --cpu x86-64-v3 --ik    # ik_llama.cpp too, whose package takes AVX2

Each side lives in its own process and times itself. A decode step is one token in, its logits out;
nothing is sampled. `--layers` and `--sparse` change the shape, the same for both. See
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from perplexity import surprise
from shapes import shape, write_source
from sides import (
    AGREEMENT_TOKENS,
    Q8_0_BYTES,
    Q8_0_NUMBERS,
    Remote,
    agreement,
    ik_llama_cpp,
    llama_cpp,
    llama_cpp_logits,
    ours,
)

from minicpm_mlc import Engine
from minicpm_mlc.base.choices import ATTENTION
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench import decode as bench
from minicpm_mlc.bench.limits import measure_limits, memory_reader
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bench.speed_report import SpeedRow, bandwidth_cells
from minicpm_mlc.bundle.manifest import Bundle, read_bundle
from minicpm_mlc.compile.checkpoint import RandomCheckpoint
from minicpm_mlc.compile.checkpoint.gguf import open_gguf
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.runtime_py.traffic import Traffic, bundle_traffic

OURS, THEIRS, IK = "minicpm-mlc", "llama.cpp", "ik_llama.cpp"
LICENCE = Path(__file__).parents[1] / "LICENSE"
TEXT_TOKENS = 2048  # of the text whose perplexity is told


@dataclass(frozen=True)
class Comparison:
    """The rows of every side, line by line; the first side is compared with each other. `agreement`
    is of their logits.

    `load` is the load average when it began: programs that were running besides. `perplexity` of
    a text, by side, where the weights are a model's.
    """

    name: str
    device: str
    limits: Limits
    agreement: float
    load: float
    command: str
    sides: dict[str, list[SpeedRow]]
    weights: str = "random weights"
    perplexity: dict[str, float] = field(default_factory=dict)

    def head(self) -> str:
        told = ", ".join(f"{side} {number:.3f}" for side, number in self.perplexity.items())
        return (
            f"{self.name}, {self.weights}; {self.device}, {self.limits.text()}. "
            f"Logits correlate {self.agreement:.3f}. "
            + (f"Perplexity: {told}. " if told else "")
            + f"Load average before the run: {self.load:.1f}."
        )

    def cells(self) -> list[list[str]]:
        others = list(self.sides)[1:]
        head = ["phase", "depth", "tokens", *(f"{side} tokens/s" for side in self.sides)]
        head += [*(f"to {side}" for side in others), *(f"{side} GB/s" for side in self.sides)]
        return [head, *map(self._line, zip(*self.sides.values(), strict=True))]

    def _line(self, rows: tuple[SpeedRow, ...]) -> list[str]:
        speeds = [row.tokens_per_second for row in rows]
        ratios = [f"{speeds[0] / speed:.2f}x" for speed in speeds[1:]]
        memory = [
            " = ".join(filter(None, bandwidth_cells(row, self.limits.bandwidth))) for row in rows
        ]
        return [
            rows[0].phase,
            f"{rows[0].depth}",
            f"{rows[0].tokens}",
            *(f"{s:.1f}" for s in speeds),
            *ratios,
            *memory,
        ]

    def plain(self) -> str:
        return f"{self.head()}\n\n{plain_table(self.cells())}"

    def markdown(self) -> str:
        return f"{self.head()}\n\n`{self.command}`\n\n{markdown_table(self.cells())}"

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def gguf_traffic(path: Path, config: ModelConfig, kv: str) -> Traffic:
    """What llama.cpp reads per step: every tensor but an embedding that the head doesn't share, and
    keys and values.
    """
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    unread = set() if config.tie_word_embeddings else {"token_embd.weight"}
    weights = sum(int(tensor.n_bytes) for tensor in tensors if tensor.name not in unread)
    numbers = config.kv_bytes_per_token(1)
    return Traffic(weights, round(numbers * (Q8_0_BYTES / Q8_0_NUMBERS if kv == "int8" else 2)))


@dataclass(frozen=True)
class Sources:
    """What is compared: a shape's random weights, or one file's."""

    config: ModelConfig
    work: Path
    file: Path | None = None
    scheme: str = "w4"
    type: str = "Q4_0"  # llama.cpp's
    kv: str = "f16"
    cpu: str = "native"

    @staticmethod
    def of(args: argparse.Namespace) -> Sources:
        """What the command line names."""
        if args.gguf:
            config = open_gguf(args.gguf).config
            return Sources(config, args.work, args.gguf, kv=args.kv, cpu=args.cpu)
        config = shape(args.preset, args.layers, args.sparse)
        return Sources(config, args.work, None, args.quant, args.type, args.kv, args.cpu)

    def prepared(self) -> tuple[Path, Path]:
        """The bundle and the GGUF file, built in `work` unless they are there."""
        self.work.mkdir(parents=True, exist_ok=True)
        made = ("--kv", self.kv, "--cpu", self.cpu)
        kind = "".join(f"-{each}" for each in (self.kv, self.cpu) if each not in ("f16", "native"))
        if self.file:
            bundle = self.work / f"{self.file.stem}{kind}-cpu"
            compile_unless_there(bundle, str(self.file), *made)
            return bundle, self.file
        bundle = self.work / f"{self.config.name}-{self.scheme}{kind}-cpu"
        alike = ("--embedding-quant", "w4") if self.scheme == "w4" else ()
        source = str(write_source(self.config, self.work))
        options = ("--random-weights", "--quant", self.scheme, *alike, *made)
        compile_unless_there(bundle, source, *options)
        return bundle, random_gguf(self.config, self.work, self.type)

    def weights(self, bundle: Bundle) -> str:
        """What the weights are, and how they are stored on our side."""
        schemes = f"{bundle.manifest.scheme}, {bundle.manifest.embedding_scheme} for the embedding"
        whose = f"weights of {self.file.name}" if self.file else f"random weights, {self.type}"
        return f"{whose} and {schemes}"


def compile_unless_there(bundle: Path, source: str, *options: str) -> None:
    if bundle.exists():
        return
    command = [sys.executable, "-m", "minicpm_mlc", "compile", source, *options, "--out"]
    if subprocess.run([*command, str(bundle)], stdout=sys.stderr).returncode:
        sys.exit("the bundle was not compiled; the reason is printed above")


def random_gguf(config: ModelConfig, work: Path, kind: str) -> Path:
    """The same weights in one of llama.cpp's types; in Q4_0, embedding and head too."""
    from gguf_random import write_gguf
    from llama_files import quantise

    path = work / f"{config.name}-{kind.lower()}.gguf"
    if kind == "Q4_0" and not path.exists():
        return write_gguf(path, config, RandomCheckpoint(config))
    if not path.exists():
        floats = work / f"{config.name}-f16.gguf"
        write_gguf(floats, config, RandomCheckpoint(config), "f16", "f16")
        quantise(floats, path, kind, {})
        floats.unlink()
    return path


def perplexities(bundle: Path, file: Path, text: Path, threads: int) -> dict[str, float]:
    """What each side makes of the text's first tokens."""
    with Engine(bundle, threads=threads) as engine:
        ids = engine.tokenize(text.read_text())[: min(TEXT_TOKENS, engine.manifest.max_context)]
        sides = {OURS: engine.logits(ids)}
    sides[THEIRS] = llama_cpp_logits(str(file), ids, threads)
    return {name: float(np.exp(surprise(found, ids).mean())) for name, found in sides.items()}


def compare(args: argparse.Namespace) -> Comparison:
    bench.need_positive(repeats=args.repeats, threads=args.threads)
    context = max(
        AGREEMENT_TOKENS, bench.room_needed(args.depths, args.prompt_tokens, args.new_tokens)
    )
    sources = Sources.of(args)
    config = sources.config
    path, gguf_path = sources.prepared()
    told = perplexities(path, gguf_path, args.text, args.threads) if args.gguf else {}
    load = os.getloadavg()[0]
    reader = memory_reader(args.threads)
    limits = measure_limits(args.threads, reader)
    bundle = read_bundle(path)
    sides, traffic = {}, {}
    for gear in args.attention:
        name = OURS if gear == args.attention[0] else f"{OURS} {gear}"
        sides[name] = Remote(ours, str(path), context, args.threads, gear, args.random_cache)
        traffic[name] = bundle_traffic(bundle, Gears.of(bundle.manifest, gear))
    theirs = (str(gguf_path), context, args.threads)
    sides[THEIRS] = Remote(llama_cpp, *theirs, args.random_cache, args.kv)
    if args.ik:
        sides[IK] = Remote(ik_llama_cpp, *theirs, args.kv)
    others = [name for name in (THEIRS, IK) if name in sides]
    traffic |= dict.fromkeys(others, gguf_traffic(gguf_path, config, args.kv))
    agreed = agreement(sides[OURS], *(sides[name] for name in others))
    counts = (args.depths, args.prompt_tokens, args.new_tokens, args.repeats)
    rows = bench.measure(sides, *counts, lambda: reader.sample(bench.READS))
    limits = replace(limits, bandwidth=reader.best)
    rows = {name: [bench.with_traffic(row, traffic[name]) for row in rows[name]] for name in sides}
    command = shlex.join(["python", "bench/vs_llama.py", *sys.argv[1:]])
    weights = sources.weights(bundle)
    return Comparison(config.name, cpu_name(), limits, agreed, load, command, rows, weights, told)


def add_measuring_options(
    parser: argparse.ArgumentParser, depths: list[int], new_tokens: int, repeats: int
) -> None:
    """What to measure, how often and how to print it, with these defaults."""
    shown = ",".join(map(str, depths))
    parser.add_argument("--depth", dest="depths", type=number_list, default=depths, help=shown)
    parser.add_argument(
        "--random-cache",
        action="store_true",
        help="fill the cache with random numbers, not by a prefill",
    )
    parser.add_argument(
        "--prompt-tokens", type=number_list, default=[512], help="512,2048; 0 leaves prefill out"
    )
    parser.add_argument("--new-tokens", type=int, default=new_tokens, help="0 leaves decode out")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="MiniCPM4-0.5B")
    parser.add_argument(
        "--gguf", type=Path, metavar="FILE", help="a model's own file, in place of a shape"
    )
    parser.add_argument(
        "--text", type=Path, default=LICENCE, help="what perplexity is of, with --gguf"
    )
    parser.add_argument(
        "--quant", choices=SCHEMES, default="w4", help="our weights; a w4 head beside w4"
    )
    parser.add_argument("--type", default="Q4_0", help="llama.cpp's weights, such as Q4_K_M")
    parser.add_argument(
        "--kv", choices=("f16", "int8"), default="f16", help="of both caches; llama.cpp's is q8_0"
    )
    parser.add_argument("--cpu", default="native", help="that ours is compiled for")
    parser.add_argument(
        "--ik", action="store_true", help="ik_llama.cpp too: pip install ik-llama-cpp-python"
    )
    parser.add_argument("--layers", type=int, help="layers instead of the preset's")
    parser.add_argument(
        "--sparse", action="store_true", help="give the shape the published sparse attention"
    )
    parser.add_argument(
        "--attention", type=gear_list, default=["auto"], help="our gear, or several: sparse,dense"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where bundle and GGUF are kept"
    )
    add_measuring_options(parser, depths=[0, 1024, 8192], new_tokens=64, repeats=5)
    parser.add_argument(
        "--prepare", action="store_true", help="only build what is missing in --work"
    )
    args = parser.parse_args()
    if args.ik and args.random_cache:
        parser.error("--ik computes what is in its cache; leave --random-cache out")
    try:
        if args.prepare:
            return print(*Sources.of(args).prepared(), sep="\n")
        result = compare(args)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    print(result.json() if args.json else result.markdown() if args.markdown else result.plain())


def number_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def gear_list(text: str) -> list[str]:
    gears = text.split(",")
    if not set(gears) <= set(ATTENTION):
        raise argparse.ArgumentTypeError(f"{text}: choose from {', '.join(ATTENTION)}")
    return gears


if __name__ == "__main__":
    main()
