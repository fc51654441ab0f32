"""How far `minicpm-mlc inspect` is off: its forecast of memory and tokens/s against measurement.

    python bench/forecast.py MiniCPM4-0.5B MiniCPM4.1-8B:4     # all layers, and 4 of them

Bundles of random weights are compiled into build/bench. The cache is filled with random numbers, so
that the depths cost no time. The limits that the forecast starts from are measured before and after
each repeat, since a machine that others share gives less at times; of a row's repeats the one with
the median error is shown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shapes import shape, write_source

from minicpm_mlc.base.choices import DEFAULT_SCHEME as SCHEME
from minicpm_mlc.base.text import human_bytes, markdown_table, plain_table
from minicpm_mlc.bench.decode import GearSide, Side, measure
from minicpm_mlc.bench.limits import UsualLimits
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.storage import choose_precision
from minicpm_mlc.inspect.forecast import DEPTHS, PROMPT, Forecast, needed_memory
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.targets import get_target

NEW_TOKENS = 8
REPEATS = 5
SAMPLES = 3  # of the limits, before and after each repeat
BEHIND = 64  # tokens of a prefill behind others, whose time is attention's
HEAD = ["model", "what", "context", "attention", "limits", "forecast", "measured", "error"]
CONTEXTS = (4096, 32768)  # tokens, for memory
OLD = {"scheme": "w4"}  # of recordings that don't tell, the default then
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
class Measured:
    """A number of tokens/s of one repeat, or of bytes, of a preset such as MiniCPM4.1-8B:4, and the
    limits around it. `rows`: of a prefill. `scheme`: of the linears.
    """

    preset: str
    what: str
    context: int
    attention: str
    rows: int
    value: float
    limits: Limits | None = None
    scheme: str = SCHEME

    @property
    def config(self) -> ModelConfig:
        """The preset's shape."""
        name, _, layers = self.preset.partition(":")
        return shape(name, int(layers) if layers else None)

    def foretold(self) -> float:
        """The forecast of it."""
        if self.limits is None:
            return needed_memory(self.config, self.scheme)(self.context)
        precision = choose_precision(self.scheme, None, "auto", None, get_target("cpu", "native"))
        forecast = Forecast(self.config, precision, self.limits)
        if self.what == "decode":
            return 1 / forecast.decode_seconds(self.context, self.attention)
        return self.rows / forecast.prefill_seconds(self.rows, self.context, self.attention)

    @property
    def error(self) -> float:
        """Of the forecast, as a share of what was measured."""
        return self.foretold() / self.value - 1

    @property
    def names(self) -> tuple[str, ...]:
        """What it is a repeat of."""
        return self.preset, self.what, f"{self.context}", self.attention

    def cells(self) -> list[str]:
        """For a table."""
        show = "{:.1f}".format if self.limits else human_bytes
        numbers = [show(self.foretold()), show(self.value), f"{self.error:+.0%}"]
        return [*self.names, self.limits.text() if self.limits else "", *numbers]


class Surroundings:
    """The limits before and after each repeat of a measurement."""

    def __init__(self, usual: UsualLimits) -> None:
        self._usual = usual
        self._found: list[Limits] = []

    def sample(self) -> None:
        """Measures them now."""
        self._usual.forget()
        for _ in range(SAMPLES):
            self._usual.sample()
        self._found.append(self._usual.limits())

    def around(self, repeat: int) -> Limits:
        """The means of those before a repeat, counted over all phases, and after it."""
        pair = [asdict(limits) for limits in self._found[repeat : repeat + 2]]
        return Limits(
            **{
                key: value and statistics.mean(each[key] for each in pair)
                for key, value in pair[0].items()
            }
        )


def bundle_of(config: ModelConfig, work: Path) -> Path:
    """The shape's bundle, compiled with random weights unless it is there."""
    path = work / f"{config.name}-{SCHEME}-default-cpu"
    work.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        compile_model(write_source(config, work), path, random_weights=True)
    return path


def speeds(
    preset: str, config: ModelConfig, path: Path, depths: list[int], usual: UsualLimits
) -> Iterator[Measured]:
    """Prefill and decode at each depth, in each gear that the model has there."""
    gears = ["dense", *(["sparse"] if config.sparse else [])]
    context = max(depths) + PROMPT
    with Engine(path, context=context, threads=usual.threads, attention=gears[0]) as engine:
        sides = {gear: GearSide(engine, gear, lambda n: fill_cache(engine, n)) for gear in gears}
        for depth in depths:
            own = {gear: sides[gear] for gear in gears if depth or gear == "dense"}
            yield from _at_depth(preset, depth, own, Surroundings(usual))


def _at_depth(
    preset: str, depth: int, sides: Mapping[str, Side], around: Surroundings
) -> Iterator[Measured]:
    """Every repeat of prefill and decode, with the limits before and after it."""
    prompt = BEHIND if depth else PROMPT
    found = measure(sides, [depth], [prompt], NEW_TOKENS, REPEATS, around.sample)
    around.sample()
    for gear, rows in found.items():
        for phase, row in enumerate(rows):
            number = prompt if row.phase == "prefill" else 1
            for repeat, value in enumerate(row.samples):
                limits = around.around(phase * REPEATS + repeat)
                yield Measured(preset, row.phase, depth, gear, number, value, limits)


def memory(preset: str, path: Path) -> Iterator[Measured]:
    """What a process takes with a full context of each length."""
    for context in CONTEXTS:
        command = [sys.executable, "-c", RESIDENT, str(path), str(context), str(PROMPT)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        yield Measured(preset, "memory", context, "", 0, int(said))


def measured(presets: list[str], depths: list[int], threads: int, work: Path) -> list[Measured]:
    """All numbers of all presets."""
    usual = UsualLimits(threads)
    found: list[Measured] = []
    for preset in presets:
        name, _, layers = preset.partition(":")
        config = shape(name, int(layers) if layers else None)
        path = bundle_of(config, work)
        found += [*speeds(preset, config, path, depths, usual), *memory(preset, path)]
    return found


def recorded(file: Path) -> list[Measured]:
    """What an earlier run measured."""
    rows = [OLD | row for row in json.loads(file.read_text())]
    limits = [row.pop("limits") for row in rows]
    return [
        Measured(**row, limits=around and Limits(**around))
        for row, around in zip(rows, limits, strict=True)
    ]


def middle(rows: Iterable[Measured]) -> list[Measured]:
    """Of all repeats of each measurement the one with the median error."""
    repeats: dict[tuple[str, ...], list[Measured]] = {}
    for row in rows:
        repeats.setdefault(row.names, []).append(row)
    return [sorted(of_one, key=lambda r: r.error)[len(of_one) // 2] for of_one in repeats.values()]


def main() -> None:
    """Prints the table, and the largest errors."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("presets", nargs="*", help="NAME, or NAME:LAYERS")
    parser.add_argument("--depth", default=",".join(map(str, DEPTHS)))
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--record", type=Path, help="Write what was measured, as JSON.")
    parser.add_argument("--replay", type=Path, nargs="*", help="Foretell what such files hold.")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    depths = [int(depth) for depth in args.depth.split(",")]
    if args.replay:
        rows = [row for file in args.replay for row in recorded(file)]
    else:
        rows = measured(args.presets, depths, args.threads, args.work)
    if args.record:
        args.record.write_text(json.dumps([asdict(row) for row in rows]))
    rows = middle(rows)
    table = markdown_table if args.markdown else plain_table
    print(f"{cpu_name()}\n{shlex.join(['python', 'bench/forecast.py', *sys.argv[1:]])}\n")
    print(table([HEAD, *(row.cells() for row in rows)]))
    for kind, of_memory in (("memory", True), ("speed", False)):
        errors = [abs(row.error) for row in rows if (row.what == "memory") == of_memory]
        print(f"\nlargest error of {kind}: {max(errors):.0%}")


if __name__ == "__main__":
    main()
