"""Where the time of a prefill and of one decode step goes: every operator's calls, time and traffic
against the machine's limits.

The virtual machine reports each call before and after it runs. That costs 1 to 3 us a call, so the
run is timed without that too.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench.decode import READS, need_depths, need_positive, need_room
from minicpm_mlc.bench.limits import measure_limits, memory_reader
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bench.reports import Reports
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bundle.kernel_cases import load_cases
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.ops.operator import Cost, Extent, Operator, from_json
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores

COLUMNS = [
    "operator",
    "shape",
    "calls",
    "ms",
    "of the step",
    "GB/s",
    "of memory",
    "GFLOP/s",
    "of arithmetic",
]
# the virtual machine's own functions, and those that compute shapes for it
OWN = ("vm.builtin.", "shape_func")
MEMORY = "memory, shapes"  # the row of all these
WAITING = "threads wait for each other"  # within operators, whose rows are without it
WARM_UP_STEPS = 3
ROOM = 64  # tokens of context beside the depth
TOKEN = 1  # decoded again and again: the speed doesn't depend on it


@dataclass(frozen=True)
class OperatorCall:
    """One call of the step: the library's name of the operator, its shape, its cost."""

    operator: str
    shape: str
    cost: Cost


@dataclass(frozen=True)
class OperatorRow:
    """All calls of one operator at one shape in a run; `seconds` is the median run's sum."""

    operator: str
    shape: str
    calls: int
    seconds: float
    bytes: int
    operations: int
    int8: bool


@dataclass(frozen=True)
class OperatorReport:
    """The operators by their time in a `run` ("one decode step"), that run's time without reports
    (seconds), and the limits measured beside it.
    """

    name: str
    device: str
    depth: int
    attention: str
    step_seconds: float
    limits: Limits
    command: str
    rows: list[OperatorRow]
    run: str = "one decode step"

    @property
    def between_seconds(self) -> float:
        """Of the run, outside operators. These are timed in other runs, which a busy machine can
        make the longer ones: then it is 0, and `head` says so."""
        return max(0.0, self.step_seconds - self._operator_seconds)

    @property
    def _operator_seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    def head(self) -> str:
        """Three lines: the run, the limits, the command."""
        share = self._operator_seconds / self.step_seconds
        busy = (
            f" (operators watched one by one took {share:.0%} of that: a busy machine, run it "
            "again)"
            if share > 1
            else ""
        )
        return (
            f"{self.name} on {self.device}, {self.run} at depth {self.depth}, "
            f"{self.attention} attention: "
            f"{self.step_seconds * 1e3:.2f} ms{busy}\n{self.limits.text()}\n{self.command}"
        )

    def cells(self) -> list[list[str]]:
        """The table: COLUMNS, then a line per operator and one for the time between them."""
        rest = self.between_seconds
        between = [
            "between operators",
            "",
            "",
            f"{rest * 1e3:.2f}",
            f"{rest / self.step_seconds:.1%}",
            "",
            "",
            "",
            "",
        ]
        return [COLUMNS, *map(self._line, self.rows), between]

    def _line(self, row: OperatorRow) -> list[str]:
        peak = self.limits.int8 if row.int8 and self.limits.int8 else self.limits.float32
        shares = _rate(row.bytes, row.seconds, self.limits.bandwidth) + _rate(
            row.operations, row.seconds, peak
        )
        times = [f"{row.seconds * 1e3:.2f}", f"{row.seconds / self.step_seconds:.1%}"]
        return [row.operator, row.shape, f"{row.calls}", *times, *shares]

    def plain(self) -> str:
        """The report for a terminal."""
        return f"{self.head()}\n\n{plain_table(self.cells())}"

    def markdown(self) -> str:
        """The report as Markdown."""
        title, limits, command = self.head().splitlines()
        return f"{title}. {limits}.\n\n`{command}`\n\n{markdown_table(self.cells())}"

    def json(self) -> str:
        """The report as one JSON object; times in seconds."""
        return json.dumps(asdict(self) | {"between_seconds": self.between_seconds}, indent=2)


def _rate(amount: int, seconds: float, limit: float) -> list[str]:
    """Billions per second and the share of `limit`; empty where nothing was counted."""
    return (
        [f"{amount / seconds / 1e9:.1f}", f"{amount / seconds / limit:.0%}"] if amount else ["", ""]
    )


def bench_operators(
    path: str | Path,
    depths: Sequence[int] = (0, 1024),
    prompt_tokens: Sequence[int] = (512,),
    repeats: int = 3,
    threads: int | None = None,
    attention: str = "auto",
) -> Reports:
    """Operator tables for each depth (tokens in the cache, random ones), by name: of prefills of so
    many tokens (none for 0), and of a decode step. `threads` None means the physical cores.

    Raises BenchError for counts and depths that are impossible or too deep, BundleError for the
    bundle.
    """
    threads = physical_cores() if threads is None else threads
    need_positive(repeats=repeats, threads=threads)
    need_depths(depths)
    prefills = [tokens for tokens in prompt_tokens if tokens]
    need_positive(**({"prompt_tokens": min(prefills)} if prefills else {}))
    context = max(depths) + max([ROOM, *prefills])
    need_room(Manifest.load(path), depths, context)
    reader = memory_reader(threads)
    limits = measure_limits(threads, reader)
    reports = {}
    with Engine(path, context=context, threads=threads, attention=attention) as engine:
        for depth, tokens in [(depth, tokens) for depth in depths for tokens in [*prefills, 0]]:
            fill_cache(engine, depth)
            seconds, rows = (
                prefill_operators(engine, tokens, repeats)
                if tokens
                else decode_operators(engine, repeats)
            )
            reader.sample(READS)
            limits = replace(limits, bandwidth=reader.best)
            gear = "sparse" if engine.gears.sparse(depth + (tokens or 1)) else "dense"
            command = (
                f"minicpm-mlc bench {shlex.quote(str(path))} --operators --depth {depth} "
                f"--prompt-tokens {tokens} --repeats {repeats} "
                f"--threads {threads} --attention {attention}"
            )
            name = f"{engine.manifest.name} {engine.manifest.scheme}"
            run = f"a prefill of {tokens} tokens" if tokens else "one decode step"
            key = f"prefill {tokens} at depth {depth}" if tokens else f"depth {depth}"
            reports[key] = OperatorReport(
                name, cpu_name(), depth, gear, seconds, limits, command, rows, run
            )
    return Reports(reports)


def decode_operators(engine: Engine, repeats: int) -> tuple[float, list[OperatorRow]]:
    """Seconds of a decode step at the engine's cached length, and its operators, the slowest
    first.
    """
    pages = engine.gears.blocks(len(engine.cached_tokens) + 1)
    return operators_of(engine, lambda: engine.decode(TOKEN), lambda: pages, repeats)


def prefill_operators(engine: Engine, tokens: int, repeats: int) -> tuple[float, list[OperatorRow]]:
    """The same of a prefill behind the cached tokens, by chunks as the engine computes it. A
    chunk's attention counts as if all rows read what its middle one does.
    """
    model, chunk, gears = engine.model, engine.prefill_chunk, engine.gears
    end = len(model) + tokens
    sparse = gears.sparse(end)

    def pages() -> tuple[int, int]:
        middle = len(model) + min(chunk, end - len(model)) // 2
        present = middle // gears.block_size + 1
        return min(gears.budget, present) if sparse else present, present

    return operators_of(engine, lambda: engine.prefill([TOKEN] * tokens), pages, repeats)


def operators_of(
    engine: Engine, run: Callable[[], Any], pages: Callable[[], tuple[int, int]], repeats: int
) -> tuple[float, list[OperatorRow]]:
    """Seconds of a run of the engine, which is taken back after it, and its operators, the slowest
    first; pages() are the blocks that attention reads now, and those there are.
    """
    depth = len(engine.cached_tokens)

    def timed() -> float:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        engine.truncate(depth)
        return seconds

    records = records_of(Path(engine.path))
    calls: list[OperatorCall] = []

    def look(kernel: str, args: Sequence[Any]) -> None:
        calls.append(described(records[kernel], args, *pages()))

    for _ in range(WARM_UP_STEPS):
        calls.clear()
        observe(engine, timed, look)
    own: list[float] = []
    waits: list[float] = []
    plain, times = zip(
        *((timed(), observe(engine, timed, own=own, waits=waits)) for _ in range(repeats)),
        strict=True,
    )
    rest = ((name, sum(each) / repeats) for name, each in ((MEMORY, own), (WAITING, waits)))
    rows = [*aggregate(calls, times), *(OperatorRow(n, "", 0, s, 0, 0, False) for n, s in rest)]
    return statistics.median(plain), sorted(rows, key=lambda row: -row.seconds)


def observe(
    engine: Engine,
    step: Callable[[], Any],
    look: Callable[[str, Sequence[Any]], None] | None = None,
    own: list[float] | None = None,
    waits: list[float] | None = None,
) -> list[float]:
    """Seconds of every operator call of one step, in order, without those in which its threads
    wait for each other, which are added to `waits`; `look` is shown each call's name and arguments.
    Those of the virtual machine's own functions are added to `own`.
    """
    seconds: list[float] = []
    started = [0.0]
    library = engine.library.local
    assert library, "operators are watched in this process alone"

    def report(_function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        now = time.perf_counter()
        is_own = name.startswith(OWN)
        if before and look and not is_own:
            look(name, args)
        if not before:
            into = own if is_own else seconds
            waited = library.waited(measure=True)
            if into is not None:
                into.append(now - started[0] - waited)
            if waits is not None:
                waits.append(waited)
        started[0] = time.perf_counter()
        return 0  # run the function

    library.waited(measure=True)
    library.instrument(report)
    try:
        step()
    finally:
        library.instrument(None)
        library.waited(measure=False)
    return seconds


def aggregate(calls: list[OperatorCall], times: Sequence[list[float]]) -> list[OperatorRow]:
    """Calls of one operator and shape together; `times` holds the seconds of each call for every
    repeat.
    """
    kinds = list(dict.fromkeys(calls))
    rows = []
    for kind in kinds:
        places = [i for i, call in enumerate(calls) if call == kind]
        seconds = statistics.median(sum(repeat[i] for i in places) for repeat in times)
        n = len(places)
        cost = kind.cost
        rows.append(
            OperatorRow(
                kind.operator,
                kind.shape,
                n,
                seconds,
                n * cost.bytes,
                n * cost.operations,
                cost.int8,
            )
        )
    return sorted(rows, key=lambda row: -row.seconds)


def records_of(bundle: Path) -> dict[str, Operator]:
    """What each kernel of a bundle's library was compiled for, by the kernel's name."""
    cases = {case.kernel: case for case in load_cases(bundle)}
    return {kernel: from_json(case.record) for kernel, case in cases.items()}


def described(record: Operator, args: Sequence[Any], blocks_read: int, blocks: int) -> OperatorCall:
    """The call of an operator in a step whose attention reads `blocks_read` of the sequence's
    `blocks`.
    """
    shapes = [tuple(map(int, arg.shape)) for arg in args]
    extent = Extent(record.dims(shapes), blocks_read, blocks)
    return OperatorCall(record.name, record.shape_label(extent), record.cost(extent))
