"""How far `minicpm-mlc inspect` is off: its forecast of memory and tokens/s against measurement.

    python bench/forecast.py MiniCPM4-0.5B MiniCPM4.1-8B:4     # all layers, and 4 of them

Bundles of random weights are compiled into build/bench. The limits that the forecast starts from
are measured in the same run. The cache is filled with random numbers, so that the depths cost no
time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from shapes import shape, write_source

from minicpm_mlc.base.text import human_bytes, markdown_table, plain_table
from minicpm_mlc.bench.decode import READS, bench_gears
from minicpm_mlc.bench.limits import memory_reader, usual_limits
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.storage import choose_precision
from minicpm_mlc.inspect.forecast import DEPTHS, PROMPT, Forecast, needed_memory
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.targets import get_target

NEW_TOKENS = 16
BEHIND = 64  # tokens of a prefill behind others, whose time is attention's
CONTEXTS = (4096, 32768)  # tokens, for memory
# the largest resident set of a process that holds a whole context and computes its last chunk
RESIDENT = """
import re, sys
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.runtime_py.engine import Engine
path, context, chunk = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Engine(path, context=context) as engine:
    fill_cache(engine, context - chunk)
    engine.prefill([1] * chunk)
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
"""


@dataclass(frozen=True)
class Row:
    """A number that was foretold and measured, in tokens/s or bytes."""

    model: str
    what: str
    context: int
    attention: str
    foretold: float
    measured: float

    @property
    def error(self) -> float:
        """Of the forecast, as a share of what was measured."""
        return self.foretold / self.measured - 1

    def cells(self) -> list[str]:
        """For a table."""
        show = human_bytes if self.what == "memory" else "{:.1f}".format
        numbers = [show(self.foretold), show(self.measured), f"{self.error:+.0%}"]
        return [self.model, self.what, f"{self.context}", self.attention, *numbers]


def bundle_of(config: ModelConfig, work: Path) -> Path:
    """The shape's bundle, compiled with random weights unless it is there."""
    path = work / f"{config.name}-default-cpu"
    work.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        compile_model(write_source(config, work), path, random_weights=True)
    return path


def speed_rows(
    config: ModelConfig, path: Path, depths: list[int], threads: int
) -> tuple[list[Row], Limits]:
    """Prefill and decode at each depth, in each gear that the forecast has there, and the limits
    around them.
    """
    reader = memory_reader(threads)
    before = usual_limits(threads, reader)
    precision = choose_precision("w4", None, "auto", None, get_target("cpu", "native"))
    measured = {}
    for prompt, part in ((PROMPT, depths[:1]), (BEHIND, depths[1:])):
        if part:
            reader.sample(READS)
            reports = bench_gears(
                path,
                ["dense", *(["sparse"] if config.sparse else [])],
                *("", part, (prompt,), NEW_TOKENS, 3, threads),
                random_cache=True,
            )
            reader.sample(READS)
            measured |= {
                (row.phase, row.depth, gear): row.tokens_per_second
                for gear, report in reports.items()
                for row in report.rows
            }
    limits = between(before, usual_limits(threads, reader))
    forecast = Forecast(config, precision, limits)
    foretold = forecast.speeds(depths[:1]) + forecast.speeds(depths[1:], BEHIND)
    rows = [
        Row(
            *(config.name, speed.phase, speed.depth, speed.attention, speed.tokens_per_second),
            measured[speed.phase, speed.depth, speed.attention],
        )
        for speed in foretold
    ]
    return rows, limits


def between(before: Limits, after: Limits) -> Limits:
    """Means of what was measured before and after a run; memory's of all samples."""
    int8 = (before.int8 + after.int8) / 2 if before.int8 and after.int8 else None
    float32 = (before.float32 + after.float32) / 2
    return Limits(before.threads, after.bandwidth, float32, int8)


def memory_rows(config: ModelConfig, path: Path) -> list[Row]:
    """What a process takes with a full context of each length."""
    manifest = read_bundle(path).manifest
    chunk = manifest.prefill_chunk
    rows = []
    for context in CONTEXTS:
        command = [sys.executable, "-c", RESIDENT, str(path), str(context), str(chunk)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        foretold = needed_memory(config, manifest.scheme)(context)
        rows.append(Row(config.name, "memory", context, "", foretold, int(said)))
    return rows


def main() -> None:
    """Prints the table, and the largest errors."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("presets", nargs="+", help="NAME, or NAME:LAYERS")
    parser.add_argument("--depth", default=",".join(map(str, DEPTHS)))
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    depths = [int(depth) for depth in args.depth.split(",")]
    configs = [
        shape(name, int(layers) if layers else None)
        for name, _, layers in (preset.partition(":") for preset in args.presets)
    ]
    paths = [bundle_of(config, args.work) for config in configs]
    rows: list[Row] = []
    limits: list[str] = []
    for config, path in zip(configs, paths, strict=True):
        speeds, around = speed_rows(config, path, depths, args.threads)
        rows += speeds + memory_rows(config, path)
        limits.append(f"{config.name}: {around.text()}")
    command = shlex.join(["python", "bench/forecast.py", *sys.argv[1:]])
    if args.json:
        told = [asdict(row) | {"error": row.error} for row in rows]
        return print(json.dumps({"limits": limits, "command": command, "rows": told}))
    head = ["model", "what", "context", "attention", "forecast", "measured", "error"]
    table = (markdown_table if args.markdown else plain_table)([head, *(r.cells() for r in rows)])
    print("\n".join([cpu_name(), *limits, command, "", table, ""]))
    for kind, chosen in (("memory", True), ("speed", False)):
        errors = [abs(row.error) for row in rows if (row.what == "memory") == chosen]
        print(f"largest error of {kind}: {max(errors):.0%}")


if __name__ == "__main__":
    main()
