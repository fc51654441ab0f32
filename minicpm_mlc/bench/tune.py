"""Which parameters make a bundle's kernels fastest on its device.

Every candidate of an operator and shape is a kernel of one library that is compiled here. They are
called in turns, on copies of their arguments that no cache holds together, and held against the
definition by the bundle's stored cases.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.files import check_place, write_text
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench.decode import BenchError, memory_reader, need_positive
from minicpm_mlc.bundle.kernel_cases import Case, load_cases
from minicpm_mlc.bundle.manifest import PAGE_SIZE, Manifest
from minicpm_mlc.ops.attend import AttendDecode
from minicpm_mlc.ops.operator import Extent, Operator, from_json
from minicpm_mlc.ops.samples import Draw
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.kernel_check import check
from minicpm_mlc.runtime_py.library import LocalLibrary
from minicpm_mlc.runtime_py.local_machine import LocalMachine
from minicpm_mlc.runtime_py.memory import HostMemory, Memory
from minicpm_mlc.runtime_py.thread_pool import pool_for
from minicpm_mlc.targets import Target, get_target
from minicpm_mlc.targets.tuning import TunedKernel, Tuning

UNCACHED = 256 << 20  # bytes of the copies of a call's arguments together
MOST_COPIES = 1024
SAMPLE_SECONDS = 0.01  # that a sample's calls take together
GAIN = 0.03  # by which a candidate has to be faster than the usual parameters: more than noise


@dataclass
class Candidate:
    """One kernel: an operator's, with some parameters. `name`: in the library."""

    name: str
    operator: Operator
    parameters: dict[str, int]
    samples: list[float] = field(default_factory=list)  # seconds of a call
    nmse: float = 0.0
    limit: float = 0.0

    @property
    def seconds(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)


@dataclass(frozen=True)
class TuneReport:
    """The table that was written to `path`, and the command that uses it."""

    tuning: Tuning
    path: str
    command: str

    def cells(self) -> list[list[str]]:
        """The heading, then a line per operator and shape."""
        head = ["operator", "shape", "usual us", "best us", "of memory", "parameters", "NMSE"]
        return [head, *map(_line, self.tuning.kernels)]

    def _text(self, table: Callable[[list[list[str]]], str]) -> str:
        about = f"{self.tuning.name}, memory reads {self.tuning.bandwidth / 1e9:.1f} GB/s"
        return f"{about}\n\n{table(self.cells())}\n\n{self.path}; use it: {self.command}"

    def plain(self) -> str:
        """For a terminal."""
        return self._text(plain_table)

    def markdown(self) -> str:
        """As a Markdown table."""
        return self._text(markdown_table)

    def json(self) -> str:
        """The table itself."""
        return self.tuning.json()


def _line(kernel: TunedKernel) -> list[str]:
    parameters = ", ".join(f"{name} {value}" for name, value in kernel.parameters.items())
    sizes = {k: v for k, v in kernel.record["fields"].items() if isinstance(v, (int, str))}
    times = [f"{kernel.usual_microseconds:.1f}", f"{kernel.microseconds:.1f}"]
    return [
        kernel.record["operator"],
        " ".join(f"{name}={value}" for name, value in sizes.items()),
        *times,
        f"{kernel.of_ceiling:.0%}",
        parameters or "as usual",
        f"{kernel.nmse:.0e}",
    ]


def tune_bundle(
    path: str | Path,
    out: str | Path = "tuning.json",
    depth: int = 1024,
    repeats: int = 7,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> TuneReport:
    """Sweeps the parameters of a bundle's kernels on this machine for one row, attention with
    `depth` cached tokens, and writes the table `out`.

    Raises BundleError for a bundle that doesn't load, BenchError where its kernels have no
    parameters or the numbers can't be.
    """
    need_positive(depth=depth, repeats=repeats)
    check_place(out, "-o", BenchError)
    machine = LocalMachine()
    bundle = machine.read_bundle(path)
    library = LocalLibrary(bundle, threads or machine.cores)
    target = target_of(bundle.manifest)
    cases = first_cases(load_cases(bundle.path), target)
    if not cases:
        raise BenchError(
            f"no kernel of {path} has parameters: they are of linears with int8 activations, and "
            "on a GPU of decode's attention"
        )
    reader = memory_reader(library)
    assert reader
    with tempfile.TemporaryDirectory() as scratch:
        made = export_candidates(target, cases, Path(scratch))
        sweep = Sweep(library, target, cases, made, depth)
        for done in range(repeats):
            progress("repeats", done, repeats)
            reader.sample()
            sweep.sample(done)
        progress("repeats", repeats, repeats)
        found = sweep.table(reader.best)
    write_text(out, found.json())
    return TuneReport(found, str(out), f"minicpm-mlc compile {path} --tuning {out} -o NEW")


def target_of(manifest: Manifest) -> Target:
    """What a bundle of this machine was compiled for."""
    made = manifest.target
    if made["device"] == "cpu":
        return get_target("cpu", cpu=made["cpu"])
    return get_target(made["device"], arch=",".join(made["archs"]) if "archs" in made else None)


def first_cases(cases: Sequence[Case], target: Target) -> dict[Operator, Case]:
    """Of each operator that has parameters, its case of fewest rows."""
    found: dict[Operator, Case] = {}
    for case in cases:
        if case.operator in target.traits.choices:
            record = from_json(case.record)
            rows = case.inputs[0].shape[0]
            if record not in found or rows < found[record].inputs[0].shape[0]:
                found[record] = case
    return found


def candidates_of(
    operator: Operator, choices: dict[str, tuple[int, ...]]
) -> Iterator[dict[str, int]]:
    """Every combination of an operator's parameters."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def export_candidates(target: Target, cases: dict[Operator, Case], folder: Path) -> Path:
    """The library of all candidates, in a folder. It takes the compiler."""
    import tvm

    from minicpm_mlc.ops.build import build

    path = folder / target.libraries[0]
    candidates = itertools.chain(*_all_candidates(target, cases).values())
    kernels = {
        each.name: build(each.operator, target.traits.tuned(each.parameters)) for each in candidates
    }
    module = tvm.IRModule(
        {name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()}
    )
    built = tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline())
    target.export(built, str(path))
    return path


class Sweep:
    """The candidates of all operators, and the arguments that they are called on."""

    def __init__(
        self,
        library: LocalLibrary,
        target: Target,
        cases: dict[Operator, Case],
        made: Path,
        depth: int,
    ) -> None:
        """`made`: what `export_candidates` wrote for the same target and cases."""
        self._library, self._target = library, target
        self.candidates = _all_candidates(target, cases)
        self._kernels = _Kernels(library.memory, self.candidates, made, library.threads)
        self._calls = {record: _Calls(record, case, depth) for record, case in cases.items()}
        for record, case in cases.items():
            for candidate in self.candidates[record]:
                own = replace(case, kernel=candidate.name)
                checked = check(self._kernels, own, timed=False)
                candidate.nmse, candidate.limit = checked.nmse, checked.limit

    def sample(self, repeat: int) -> None:
        """Times every candidate once, those of one operator in turns, another one first each time;
        a pass before them wakes the threads and maps the memory.
        """
        for record, candidates in self.candidates.items():
            calls = self._calls[record].tensors(self._kernels.memory)
            self._seconds(candidates[0], calls)
            first = repeat % len(candidates)
            for candidate in (*candidates[first:], *candidates[:first]):
                candidate.samples.append(self._seconds(candidate, calls))

    def _seconds(self, candidate: Candidate, calls: list[list[Any]]) -> float:
        """Of a call, in a run over all copies that is long enough to be timed."""
        function, rounds = self._kernels.functions[candidate.name], 1
        if candidate.samples:
            rounds = max(1, round(SAMPLE_SECONDS / candidate.seconds / len(calls)))
        with self._kernels.turn():
            start = time.perf_counter()
            for _ in range(rounds):
                for arguments in calls:
                    function(*arguments)
            self._kernels.memory.array(calls[-1][-1])  # waits for a device
            seconds = time.perf_counter() - start
        return seconds / rounds / len(calls)

    def table(self, bandwidth: float) -> Tuning:
        """What was found, beside the speed of memory in bytes a second."""
        kernels = [self.chosen(record, bandwidth) for record in self.candidates]
        target = self._target
        name = self._library.device_name
        return Tuning(target.device, name, target.int8_dot, bandwidth, kernels)

    def chosen(self, record: Operator, bandwidth: float) -> TunedKernel:
        """The fastest candidate that is right, the usual one unless another is clearly faster."""
        usual, *others = self.candidates[record]
        right = [each for each in others if each.nmse <= each.limit]
        best = min(right, key=lambda each: each.seconds, default=usual)
        if best.seconds > usual.seconds * (1 - GAIN):
            best = usual
        share = self._calls[record].moved / best.seconds / bandwidth
        parameters = best.parameters if best is not usual else {}
        times = (best.seconds * 1e6, usual.seconds * 1e6)
        return TunedKernel(record.to_json(), parameters, *times, share, best.nmse)


class _Kernels:
    """The library of all candidates."""

    def __init__(
        self,
        memory: Memory,
        candidates: dict[Operator, list[Candidate]],
        path: Path,
        threads: int,
    ) -> None:
        self.memory, loaded = memory, tvm_ffi.load_module(path)
        every = itertools.chain(*candidates.values())
        self.functions = {each.name: loaded[each.name] for each in every}
        self._pool = pool_for(path) if isinstance(memory, HostMemory) else None
        self._threads = threads

    def turn(self) -> AbstractContextManager[None]:
        """What calls have to be within."""
        return self._pool.turn(self._threads, 1) if self._pool else nullcontext()

    def kernel(self, name: str) -> Callable[..., None]:
        """One candidate, to be called alone."""

        def kernel(*tensors: Any) -> None:
            with self.turn():
                self.functions[name](*tensors)

        return kernel


class _Calls:
    """Copies of one call's arguments, so many that no cache holds them all; `moved`: bytes that a
    call has to move.
    """

    def __init__(self, record: Operator, case: Case, depth: int) -> None:
        deep = isinstance(record, AttendDecode)
        inputs = _deep_call(record, depth) if deep else [each.array() for each in case.inputs]
        dims = record.dims([array.shape for array in inputs])
        outputs = [np.zeros(each.sizes(dims), each.dtype) for each in record.outputs()]
        pages = -(-depth // PAGE_SIZE)
        self.moved = record.cost(Extent(dims, pages, pages)).bytes
        self._arrays = [*inputs, *outputs]

    def tensors(self, memory: Memory) -> list[list[Any]]:
        """New tensors of them."""
        nbytes = sum(array.nbytes for array in self._arrays)
        copies = min(MOST_COPIES, -(-UNCACHED // nbytes))
        return [[memory.tensor(array.copy()) for array in self._arrays] for _ in range(copies)]


def _all_candidates(target: Target, cases: dict[Operator, Case]) -> dict[Operator, list[Candidate]]:
    """Those of all operators, each with a name of its own."""
    return {record: list(_candidates(record, target, i)) for i, record in enumerate(cases)}


def _candidates(record: Operator, target: Target, number: int) -> Iterator[Candidate]:
    """Those of one operator, the usual parameters first."""
    choices = target.traits.choices[record.name]
    usual = {name: getattr(target.traits, name) for name in choices}
    others = (each for each in candidates_of(record, choices) if each != usual)
    for i, parameters in enumerate([usual, *others]):
        yield Candidate(f"kernel_{number}_{i}", record, parameters)


def _deep_call(record: AttendDecode, depth: int) -> list[np.ndarray]:
    """One row at the end of `depth` cached tokens."""
    pages = -(-depth // PAGE_SIZE)
    inputs = [tiled.array() for tiled in record.inputs_of(Draw(), 1, pages)]
    table = np.arange(pages, dtype=np.int32)[None]
    return [*inputs, table, np.array([depth - 1], np.int32)]
