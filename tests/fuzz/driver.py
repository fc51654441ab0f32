"""Runs one fuzz target, a file fuzz_NAME.py beside this one.

    python tests/fuzz/driver.py NAME                  # its seeds, its corpus and mutations of both
    pip install atheris
    python tests/fuzz/driver.py NAME --minutes 10     # guided by coverage; 0 minutes: no end

A target has `seeds() -> list[bytes]`, the first of them without a fault, and `run(data, folder)`,
which does with a file of a stranger what the product does with it. It may raise MiniCPMError. Any
other exception, more than SECONDS or more than MEGABYTES is a crash; its input is written to
--crashes, and the exit status is 1. A target that is a READER may take 4 bytes for each of its
input, and 64 MB. A crash that was fixed goes to corpus/NAME, where every run
tries it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType

HERE = Path(__file__).parent
SECONDS = 5  # of processor time, for one input
MEGABYTES = 1024  # beside what the program itself takes
READERS = 4, 64 << 20  # bytes that a reader may take: for each byte of its input, and beside
MUTATIONS = 200  # of a run without atheris; a target may have its own number
LONGEST = 1 << 16  # bytes of an input
sys.path[:0] = [str(HERE), str(HERE.parent)]

import mutations  # noqa: E402


class SlowError(Exception):
    """An input that took longer than SECONDS."""


class Runner:
    """Tries inputs on a target; counts what was tried, remembers which crashes were seen."""

    def __init__(self, target: ModuleType, folder: Path, crashes: Path) -> None:
        from minicpm_mlc.base.errors import MiniCPMError

        self.allowed = getattr(target, "ALLOWED", MiniCPMError)
        self.target, self.folder, self.crashes = target, folder, crashes
        self.reader = getattr(target, "READER", False)
        self.seen: set[str] = set()
        self.tried = 0
        self.slowest = 0.0

    def __call__(self, data: bytes) -> bool:
        """Tries one input; a crash of a new kind is printed and kept. True if it was taken."""
        self.tried += 1
        start, taken = time.process_time(), False
        try:
            with limited_time(), self._limited_memory(len(data)):
                self.target.run(data, self.folder)
            taken = True
        except self.allowed:
            pass
        except BaseException as error:  # pyo3's PanicException is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._keep(data, error)
        self.slowest = max(self.slowest, time.process_time() - start)
        return taken

    def _limited_memory(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Not of the first input, for which modules are imported."""
        if not self.reader or self.tried == 1 or sys.platform != "linux":
            return contextlib.nullcontext()
        each, beside = READERS
        return limited_growth(each * size + beside)

    def _keep(self, data: bytes, error: BaseException) -> None:
        kind = crash_kind(error)
        if kind in self.seen:
            return
        self.seen.add(kind)
        self.crashes.mkdir(parents=True, exist_ok=True)
        path = self.crashes / f"crash-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"{kind}: {str(error)[:200]}\n  kept in {path}", flush=True)
        traceback.print_exception(error, limit=-6)


def crash_kind(error: BaseException) -> str:
    """The exception and the last line of this project that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "minicpm_mlc" in f.filename] or frames[-1:]
    last = "".join(f"{Path(f.filename).name}:{f.lineno}" for f in ours[-1:])
    return f"{type(error).__name__} at {last}"


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """Raises SlowError in the block after SECONDS of processor time."""
    signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_slow(_: int, __: FrameType | None) -> None:
    raise SlowError(f"more than {SECONDS} s")


def inputs(name: str, target: ModuleType) -> list[bytes]:
    """The target's seeds, and what crashed it once."""
    return [
        *target.seeds(),
        *(file.read_bytes() for file in sorted((HERE / "corpus" / name).glob("*"))),
    ]


def replay(name: str, target: ModuleType, runner: Runner) -> None:
    """Inputs as they are, then mutations of them: the same ones in every run."""
    known, rng = inputs(name, target), random.Random(name)
    limit_memory()
    if not runner(known[0]):
        sys.exit(f"{name}: the first seed is what the product writes, and it is refused")
    for data in known[1:]:
        runner(data)
    for _ in range(getattr(target, "MUTATIONS", MUTATIONS)):
        runner(mutations.mutate(rng.choice(known), rng)[:LONGEST])


def limit_memory() -> None:
    """From here on MEGABYTES more than what is mapped; beyond it, MemoryError or the end."""
    if sys.platform == "linux":
        most = mapped() + (MEGABYTES << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


@contextlib.contextmanager
def limited_growth(nbytes: int) -> Iterator[None]:
    """In the block no more than so many bytes may be mapped beside what is; else MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped() + nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def mapped() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def explore(name: str, target: ModuleType, runner: Runner, minutes: float, seed: int) -> None:
    """Guided by coverage, until the time is over or the process is ended."""
    import atheris

    end = time.monotonic() + 60 * minutes

    def one(data: bytes) -> None:
        runner(data)
        if minutes and time.monotonic() > end:
            status = report(name, runner)
            shutil.rmtree(runner.folder)
            os._exit(status)  # an exception would be taken for a crash

    def custom_mutator(data: bytes, longest: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return mutations.mutate(data, rng)[:longest]
        return atheris.Mutate(data, longest)

    corpus = runner.crashes / "inputs"  # kept: the next run goes on with what this one found
    corpus.mkdir(parents=True, exist_ok=True)
    known = inputs(name, target)
    runner(known[0])  # imports what it needs
    for number, data in enumerate(known):
        (corpus / str(number)).write_bytes(data)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    options = [f"-max_len={LONGEST}", f"-rss_limit_mb={MEGABYTES + resident}", "-timeout=30"]
    options += [f"-seed={seed}", f"-artifact_prefix={runner.crashes}/", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], str(corpus), *options], one, custom_mutator=custom_mutator)
    atheris.Fuzz()


def report(name: str, runner: Runner) -> int:
    """Prints what was done as JSON; 1 if anything crashed."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    figures = {"target": name, "inputs": runner.tried, "crashes": len(runner.seen)}
    figures |= {"slowest_seconds": round(runner.slowest, 2), "peak_megabytes": peak}
    print(json.dumps(figures), flush=True)
    return 1 if runner.seen else 0


def load(name: str, guided: bool) -> ModuleType:
    """The target's module; with atheris its branches are counted, and those of what it imports."""
    if not guided:
        return importlib.import_module(f"fuzz_{name}")
    import atheris

    with atheris.instrument_imports(include=["minicpm_mlc", "jinja2", "zipfile"]):
        return importlib.import_module(f"fuzz_{name}")


def names() -> list[str]:
    """Every target."""
    return sorted(file.stem.removeprefix("fuzz_") for file in HERE.glob("fuzz_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=names())
    parser.add_argument("--minutes", type=float, help="with atheris, for so long; 0: no end")
    parser.add_argument("--crashes", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    target = load(args.name, args.minutes is not None)
    with tempfile.TemporaryDirectory(prefix="minicpm-fuzz-") as folder:
        runner = Runner(target, Path(folder), args.crashes / args.name)
        if args.minutes is None:
            replay(args.name, target, runner)
        else:
            explore(args.name, target, runner, args.minutes, args.seed)
    return report(args.name, runner)


if __name__ == "__main__":
    sys.exit(main())
