"""The steps of bench/gpu_session.py: each takes what `make` wrote for one device, and yields its
table and what is wrong as they grow, so that what was found before it hangs is kept.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gpu_smoke as smoke
import numpy as np
from device_weights import cache_filler, random_engine

from minicpm_mlc.bench import tune
from minicpm_mlc.bench.decode import memory_reader
from minicpm_mlc.bench.speed_report import SpeedReport
from minicpm_mlc.bundle.kernel_cases import load_cases
from minicpm_mlc.ops.gpu.speed_limits import CHAINS, STEPS, THREADS
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.library import LocalLibrary
from minicpm_mlc.runtime_py.memory import DeviceMemory, open_memory
from minicpm_mlc.runtime_py.verify import verify_bundle

GROUPS = 512  # workgroups of a kernel that multiplies
INT32 = np.dtype(np.int32)
LONG, MOST_CALLS = 0.05, 1000  # seconds of calls that are timed together, and how many those are
LOGITS = 73_472  # float32 that a step of MiniCPM4 copies to the host
ROWS = 16  # nodes of the tree that is verified
TRIES, WARM = 5, 2  # the first call of a shape is launched kernel by kernel, the second recorded


@dataclass
class Result:
    """What one step found. `table`: its cells, the heading first; `wrong`: what must not be."""

    table: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # to lie beside the report, by name


@dataclass(frozen=True)
class Plan:
    """What `make` wrote into a device's folder."""

    folder: Path
    device: str
    sizes: smoke.Sizes
    answers: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Plan:
        """Raises FileNotFoundError where `make` wrote nothing."""
        plan = json.loads((folder / smoke.PLAN).read_bytes())
        return cls(folder, plan["device"], smoke.SHAPES[plan["shapes"]], plan["answers"])

    @property
    def library(self) -> Any:
        """The kernels that measure and fill, on the device, whose runtime is loaded."""
        open_memory(self.device)
        return tvm_ffi.load_module(self.folder / smoke.PEAK)

    @property
    def largest(self) -> Path:
        """The bundle of the largest model."""
        return self.folder / self.sizes.presets[-1]


def limits(plan: Plan) -> Iterator[Result]:
    """What the device gives: memory, arithmetic, launches, copies."""
    library, memory = plan.library, open_memory(plan.device)
    assert isinstance(memory, DeviceMemory)
    result = Result([["limit", "measured"]], [memory.identity])
    with random_engine(plan.folder / plan.sizes.presets[0], 128, library) as engine:
        reader = memory_reader(engine.library)
        assert reader
        reader.sample(TRIES)
        result.table.append(["memory reads", f"{reader.best / 1e9:.0f} GB/s"])
    yield result
    work = GROUPS * THREADS * CHAINS * STEPS
    out = memory.zeros((GROUPS, THREADS), np.dtype("float32"))
    seconds = _each(memory, out, lambda: library["multiply_add_peak"](out))
    result.table.append(["float32 multiply-adds", f"{2 * work / seconds / 1e12:.2f} TFLOP/s"])
    if library.implements_function("int8_peak"):
        x, out = memory.tensor(np.ones(1, np.int32)), memory.zeros((GROUPS, THREADS), INT32)
        seconds = _each(memory, out, lambda: library["int8_peak"](x, out))
        result.table.append(["int8 dot products", f"{8 * work / seconds / 1e12:.2f} TOP/s"])
    yield result
    result.table += _overheads(memory, library)
    yield result


def _each(memory: DeviceMemory, out: Any, call: Callable[[], Any]) -> float:
    """Seconds of one call among many, until the device is done."""

    def calls(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        memory.array(out)
        return time.perf_counter() - start

    first = calls(1)
    count = max(1, min(MOST_CALLS, round(LONG / first)))
    return min(calls(count) for _ in range(TRIES if first < LONG else 1)) / count


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _overheads(memory: DeviceMemory, library: Any) -> list[list[str]]:
    """A launch, and the copy of a row of logits."""
    bits, out = memory.tensor(np.zeros(2, np.uint32)), memory.zeros((1,), np.dtype("uint32"))

    def launch() -> None:
        library["fill"](bits, out)

    launched = min(_seconds(launch) for _ in range(MOST_CALLS))
    done = _each(memory, out, launch)
    logits = memory.zeros((LOGITS,), np.dtype("float32"))
    copied = min(_seconds(lambda: memory.array(logits)) for _ in range(TRIES))
    return [
        ["a launch, until the call is back", f"{launched * 1e6:.2f} us"],
        ["a launch, until the device is done", f"{done * 1e6:.2f} us"],
        ["a row of logits to the host", f"{copied * 1e6:.0f} us"],
    ]


def demo_kernels(plan: Plan) -> Iterator[Result]:
    """Every kernel of the demo bundles against its definition."""
    result = Result([["bundle", "operator", "cases", "NMSE", "limit", "ms"]])
    for name in plan.answers:
        report = verify_bundle(plan.folder / name)
        result.wrong += [f"{name}: {operator}" for operator in report.failed]
        for row in report.rows:
            numbers = [f"{row.nmse:.1e}", f"{row.limit:.0e}", f"{row.seconds * 1e3:.2f}"]
            result.table.append([name, row.operator, f"{row.cases}", *numbers])
        yield result


def answers(plan: Plan) -> Iterator[Result]:
    """Greedy tokens against the CPU's, decoded plainly and in trees."""
    result = Result([["bundle", "speculation", "answers", "as the CPU's"]])
    for name, expected in plan.answers.items():
        for speculate, same in smoke.chats(plan.folder / name, expected, plan.sizes.answer):
            result.table.append([name, speculate, f"{len(expected)}", f"{same}"])
            if same < len(expected):
                result.wrong.append(f"{name}: {len(expected) - same} answers, {speculate}")
            yield result


def speed(plan: Plan) -> Iterator[Result]:
    """Decode of the largest model, one verified tree, and prefill."""
    yield from _speed(plan, plan.largest)


def small_speed(plan: Plan) -> Iterator[Result]:
    """The same of the smallest one."""
    yield from _speed(plan, plan.folder / plan.sizes.presets[0])


def _speed(plan: Plan, path: Path) -> Iterator[Result]:
    sizes, library = plan.sizes, plan.library
    context = max(sizes.depths) + max(*sizes.prompts, sizes.new_tokens, ROWS)
    with random_engine(path, context, library) as engine:
        filler = cache_filler(engine, library)

        def timed(some: smoke.Sizes) -> tuple[str, SpeedReport]:
            return path.name, smoke.speeds(engine, ["auto"], some, COMMAND, filler)["auto"]

        decode = timed(replace(sizes, prompts=(0,)))
        yield _reported([decode])
        depth = max(sizes.depths)
        engine.truncate(0)
        filler(depth)
        step, tree = _tree(engine, depth)
        ratio = f"{ROWS} rows verified in {tree * 1e3:.2f} ms = {tree / step:.2f} decode steps"
        notes = [f"{ratio} of {step * 1e3:.2f} ms at depth {depth}"]
        yield _reported([decode], notes)
        yield _reported([decode, timed(replace(sizes, new_tokens=0))], notes)


def _tree(engine: Any, depth: int) -> tuple[float, float]:
    """Seconds of a decode step and of a verified chain, medians, in turns."""
    rows = range(-1, ROWS - 1)
    pairs = []
    for _ in range(WARM + TRIES):
        decoded = _seconds(lambda: engine.greedy(1))
        engine.truncate(depth)
        pairs.append((decoded, _seconds(lambda: engine.model.verify([1] * ROWS, rows))))
    step, tree = (statistics.median(column) for column in zip(*pairs[WARM:], strict=True))
    return step, tree


def long_context(plan: Plan) -> Iterator[Result]:
    """Sparse against dense attention far in the context, in turns."""
    sizes, library = plan.sizes, plan.library
    deep = replace(sizes, depths=(sizes.deep,), prompts=(0,))
    with random_engine(plan.largest, sizes.deep + max(64, sizes.new_tokens), library) as engine:
        gears = ["sparse", "dense"] if engine.manifest.dense_len is not None else ["dense"]
        reports = smoke.speeds(engine, gears, deep, COMMAND, cache_filler(engine, library))
    steps = {gear: 1e3 / report.rows[-1].tokens_per_second for gear, report in reports.items()}
    notes = [", ".join(f"{gear} {ms:.2f} ms" for gear, ms in steps.items()) + " a step"]
    if len(steps) > 1:
        notes.append(f"sparse is {steps['dense'] / steps['sparse']:.1f}x as fast as dense")
    yield _reported(list(reports.items()), notes)


def _reported(reports: list[tuple[str, SpeedReport]], notes: Sequence[str] = ()) -> Result:
    heads, rows = [], []
    for name, report in reports:
        head, *lines = report.cells()
        heads.append(head)
        rows += [[name, *line] for line in lines]
    head = max(heads, key=len)  # a decode's ends in where its time went
    rows = [row + [""] * (1 + len(head) - len(row)) for row in rows]
    bandwidth = max(report.bandwidth or 0 for _, report in reports)
    return Result([["", *head], *rows], [f"memory reads {bandwidth / 1e9:.0f} GB/s", *notes])


def sweep(plan: Plan) -> Iterator[Result]:
    """The parameters that the largest model's kernels have, and the table of the fastest, which
    comes back as a file for `compile --tuning`.
    """
    with random_engine(plan.largest, 128, plan.library) as engine:
        library, target = engine.library, tune.target_of(engine.manifest)
        assert isinstance(library, LocalLibrary)
        cases, depth = tune.first_cases(load_cases(plan.largest), target), plan.sizes.swept
        reader = memory_reader(library)
        assert reader
        swept = tune.Sweep(library, target, cases, plan.folder / smoke.CANDIDATES, depth)
        for repeat in range(TRIES):
            reader.sample()
            swept.sample(repeat)
            found = swept.table(reader.best)
            told = tune.TuneReport(found, "", "")
            note = f"attention with {depth} cached tokens, {repeat + 1} times"
            yield Result(told.cells(), [note], files={f"{plan.device}-tuning.json": found.json()})


def large_kernels(plan: Plan) -> Iterator[Result]:
    """Every kernel of the largest model's library against its definition, with its time."""
    result = Result([["operator", "kernel", "NMSE", "limit", "us"]])
    with random_engine(plan.largest, 128, plan.library) as engine:
        for case in load_cases(plan.largest):
            checked = engine.library.check(case)
            numbers = [
                f"{checked.nmse:.1e}",
                f"{checked.limit:.0e}",
                f"{checked.seconds * 1e6:.0f}",
            ]
            result.table.append([checked.operator, checked.kernel, *numbers])
            result.wrong += [] if checked.passed else [checked.kernel]
            yield result


def llama(plan: Plan) -> Iterator[Result]:
    """llama.cpp on the same device, where its llama-bench and a model were carried along."""
    program, models = shutil.which("llama-bench"), sorted(plan.folder.parent.glob("*.gguf"))
    if not program or not models:
        yield Result(notes=["left out: no llama-bench on PATH, or no .gguf beside the device"])
        return
    sizes, result = plan.sizes, Result([["model", "phase", "depth", "tokens", "tokens/s"]])
    for model in models:
        counts = ["-p", f"{max(sizes.prompts)}", "-n", f"{sizes.new_tokens}", "-ngl", "99"]
        depths = ["-d", ",".join(map(str, (*sizes.depths, sizes.deep))), "-fa", "1", "-o", "json"]
        run = [program, "-m", str(model), *counts, *depths]
        found = json.loads(subprocess.run(run, check=True, capture_output=True).stdout)
        for row in found:
            phase, tokens = (
                ("decode", row["n_gen"]) if row["n_gen"] else ("prefill", row["n_prompt"])
            )
            cells = [model.name, phase, f"{row['n_depth']}", f"{tokens}", f"{row['avg_ts']:.1f}"]
            result.table.append(cells)
        yield result


def sanitizer(plan: Plan) -> Iterator[Result]:
    """memcheck and racecheck over the demo's kernels, where NVIDIA's tool is there."""
    program = shutil.which("compute-sanitizer")
    if plan.device != "cuda" or not program:
        yield Result(notes=["left out: no compute-sanitizer on PATH"])
        return
    result = Result([["tool", "says"]])
    verify = [
        sys.executable,
        "-m",
        "minicpm_mlc",
        "verify",
        str(plan.folder / next(iter(plan.answers))),
    ]
    for tool in ("memcheck", "racecheck"):
        ran = subprocess.run([program, "--tool", tool, *verify], capture_output=True, text=True)
        last = [line for line in ran.stdout.splitlines() if line.startswith("=====")][-1:]
        result.table.append(
            [tool, last[0].strip("= ") if last else f"exit status {ran.returncode}"]
        )
        result.wrong += [tool] * bool(ran.returncode)
        yield result


COMMAND = "python bench/gpu_session.py run FOLDER"
# name: what it does, and the most seconds that it may take; those worth most come first
ALL: dict[str, tuple[Callable[[Plan], Iterator[Result]], int]] = {
    "limits": (limits, 60),
    "demo-kernels": (demo_kernels, 60),
    "speed": (speed, 120),
    "long-context": (long_context, 120),
    "answers": (answers, 90),
    "sweep": (sweep, 90),
    "large-kernels": (large_kernels, 90),
    "small-speed": (small_speed, 60),
    "llama.cpp": (llama, 120),
    "sanitizer": (sanitizer, 90),
}
