"""minicpm-run against the Python runtime, in turn, on one bundle: the program's size, time from a
new process to the first piece of an answer, memory beyond the weights, decode speed. Speculation
is off in both unless --speculate says otherwise.

    python bench/engine.py BUNDLE [--rounds 5] [--speculate auto]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.engine_build import EngineBuild
from minicpm_mlc.runtime_py.machine import cpu_name

HEADER = """\
| | program | resident beyond the weights | start to first piece | decode tok/s |
|---|--:|--:|--:|--:|"""
OPTIONS = ["--prompt", "Tell me about pages. /no_think", "--temperature", "0", "--context", "1024"]


@dataclass(frozen=True)
class Run:
    """Seconds from the process's start to the first piece, decoded tokens per second, and the
    largest resident size in bytes.
    """

    first: float
    rate: float
    resident: int


def measured(command: list[str]) -> Run:
    """One process, from its start to its end: it answers on standard output, and tells its figures
    on standard error.
    """
    begun = time.perf_counter()
    pipe = subprocess.PIPE
    resident = 0
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, bufsize=0
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        first = time.perf_counter() - begun
        while process.stdout.read(64):
            resident = max(resident, peak(process.pid))
        said = process.stderr.read().decode()
    if process.returncode:
        raise SystemExit(said)
    return Run(first, rate(said), resident)


def peak(process: int) -> int:
    """The largest resident size so far, bytes; 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def rate(said: str) -> float:
    """Decoded tokens per second, of minicpm-run's JSON or of chat's line."""
    figures = next(line for line in said.splitlines() if "answer" in line or "decode_steps" in line)
    if figures.startswith("{"):
        stats = json.loads(figures)
        return stats["decode_steps"] / stats["decode_seconds"]
    return float(figures.split(" tok/s | context")[0].rpartition(" ")[2])


def row(name: str, program: Path | None, runs: list[Run], weights: int) -> str:
    """A line of the table: medians."""
    size = f"{program.stat().st_size / 1e6:.1f} MB" if program else "-"
    first = statistics.median(run.first for run in runs)
    beyond = statistics.median(run.resident for run in runs) - weights
    speed = statistics.median(run.rate for run in runs)
    return f"| {name} | {size} | {beyond / 1e6:.0f} MB | {first * 1000:.0f} ms | {speed:.0f} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="minicpm-run against Python")
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--speculate", default="off")
    given = parser.parse_args()
    asked = [*OPTIONS, "--max-tokens", str(given.tokens), "--speculate", given.speculate]
    program = EngineBuild(f"{platform.machine()}-linux-gnu.2.17").program()
    native = [str(program), given.bundle, "--stats", *asked]
    python = [sys.executable, "-m", "minicpm_mlc", "chat", given.bundle, "--stats", *asked]
    pairs = [(measured(native), measured(python)) for _ in range(given.rounds)]
    manifest = Manifest.load(Path(given.bundle))
    weights = manifest.memory["weights"]
    asked = f"{given.rounds} rounds, speculation {given.speculate}"
    print(f"{cpu_name()}; {manifest.name}, {manifest.scheme}, {asked}\n\n{HEADER}")
    ways = (("minicpm-run", program), ("Python", None))
    for (name, file), runs in zip(ways, zip(*pairs, strict=True), strict=True):
        print(row(name, file, list(runs), weights))


if __name__ == "__main__":
    main()
