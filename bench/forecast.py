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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from shapes import shape, write_source

from minicpm_mlc.base.text import human_bytes, markdown_table, plain_table
from minicpm_mlc.bench.decode import GearSide, measure
from minicpm_mlc.bench.limits import UsualLimits
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bench.speed_report import SpeedRow
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.storage import choose_precision
from minicpm_mlc.inspect.forecast import DEPTHS, PROMPT, Forecast, Speed, needed_memory
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.targets import get_target

NEW_TOKENS = 8
REPEATS = 3
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
    config: ModelConfig, path: Path, depths: list[int], usual: UsualLimits
) -> Iterator[tuple[list[Row], Limits]]:
    """For each depth: prefill and decode, in each gear that the forecast has there, and the limits,
    sampled between the repeats.
    """
    precision = choose_precision("w4", None, "auto", None, get_target("cpu", "native"))
    gears = ["dense", *(["sparse"] if config.sparse else [])]
    context = max(depths) + PROMPT
    with Engine(path, context=context, threads=usual.threads, attention=gears[0]) as engine:
        sides = {gear: GearSide(engine, gear, lambda n: fill_cache(engine, n)) for gear in gears}
        for depth in depths:
            usual.forget()
            prompt = BEHIND if depth else PROMPT
            rows = measure(sides, [depth], [prompt], NEW_TOKENS, REPEATS, usual.sample)
            measured = {(gear, row.phase): row for gear in gears for row in rows[gear]}
            limits = usual.limits()
            foretold = Forecast(config, precision, limits).speeds([depth], prompt)
            yield [_row(config.name, one, measured) for one in foretold], limits


def _row(model: str, foretold: Speed, measured: dict[tuple[str, str], SpeedRow]) -> Row:
    row = measured[foretold.attention, foretold.phase]
    speeds = foretold.tokens_per_second, row.tokens_per_second
    return Row(model, foretold.phase, foretold.depth, foretold.attention, *speeds)


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
    usual = UsualLimits(args.threads)
    for config, path in zip(configs, paths, strict=True):
        for speeds, around in speed_rows(config, path, depths, usual):
            rows += speeds
            limits.append(f"{config.name}, depth {speeds[0].context}: {around.text()}")
        rows += memory_rows(config, path)
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
