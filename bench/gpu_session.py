"""All that a GPU lent for some minutes is asked, in one call, what is worth most first.

    # where the compiler is: some MB, without the large weights
    python bench/gpu_session.py make FOLDER --device cuda --arch sm_90
    # where the GPU is; the runtime is enough
    python bench/gpu_session.py run FOLDER --budget 420 --out report
    # the whole of it in small on the devices that are here, before a GPU is
    python bench/gpu_session.py run --dry-run

Limits of the device, kernels against their definitions, decode, prefill and a verified tree of
random weights that the GPU makes itself, sparse against dense attention at 128K tokens, greedy
answers against the CPU's, the fastest parameters of kernels, whose table lies beside the report,
llama.cpp and NVIDIA's sanitizer where they are. Each step is a process
of its own with a limit of its own, as a kernel that fails takes its process' driver along; the
report, report.json and report.md, is written after each. What a step found before it failed or was
ended is in it.
`--steps NAME,NAME` runs some alone. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cuda_stand_in
import gpu_smoke as smoke
from session_steps import ALL, Plan, Result

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.files import write_text
from minicpm_mlc.base.text import human_bytes, markdown_table
from minicpm_mlc.bundle.manifest import MANIFEST, manifest_sha256
from minicpm_mlc.bundle.trust import allow
from minicpm_mlc.runtime_py.library import load_runtime
from minicpm_mlc.runtime_py.memory import open_memory

LEAST = 5  # seconds that a step needs to say anything
PATIENCE = 10  # times the seconds of a GPU's steps: for drivers that compile and compute on a CPU
KILLED = 5  # seconds that a process gets to be gone once it is killed; a driver may hold it
COMMIT = "commit.txt"
DRY_DEVICES = ("opencl", "vulkan")


def make(folder: Path, devices: list[str], arch: str | None, shapes: str) -> None:
    """What `run` needs, as gpu_smoke makes it, and the commit that it was made from."""
    smoke.make(folder, devices, arch, shapes)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    found = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    (folder / COMMIT).write_text(found or "unknown")


def size_of(folder: Path) -> str:
    """What has to be carried to the GPU, for a person."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{human_bytes(sum(path.stat().st_size for path in files))} in {len(files)} files"


def run(
    folder: Path,
    out: Path,
    budget: float,
    steps: list[str],
    stand_ins: Mapping[str, str] | None = None,
    patience: int = 1,
) -> Iterator[str]:
    """Lines that say how it goes; the report is in `out`. `stand_ins`: the environment in which
    CUDA is bench/cuda_stand_in.py's, which computes nothing. `patience`: how many times a step's
    own limit it may take. Raises SystemExit at its end if
    anything is wrong, at once if `make` wrote nothing there.
    """
    end = time.monotonic() + budget
    plans = sorted(folder.glob(f"*/{smoke.PLAN}"))
    if not plans:
        raise SystemExit(
            f"{folder} has no */{smoke.PLAN}; make it first: "
            f"python bench/gpu_session.py make {folder}"
        )
    out.mkdir(parents=True, exist_ok=True)
    report = _head(folder, budget)
    for plan in plans:
        for made in plan.parent.glob(f"*/{MANIFEST}"):  # on the machine that `make` ran on
            allow(manifest_sha256(made.parent))
    for name in steps:  # every device's first step comes before any one's last
        for plan in plans:
            environment = stand_ins if plan.parent.name == "cuda" else None
            left = end - time.monotonic()
            found = _step(name, plan.parent, out, (ALL[name][1] * patience, left), environment)
            report["steps"].append(found)
            write_text(out / "report.json", json.dumps(report, indent=1))
            write_text(out / "report.md", markdown(report))
            yield f"{found['device']:8} {name:14} {found['seconds']:6.1f} s  {_verdict(found)}"
    if wrong := [f"{each['step']}: {what}" for each in report["steps"] for what in each["wrong"]]:
        raise SystemExit(f"wrong: {'; '.join(wrong)}")


def _head(folder: Path, budget: float) -> dict[str, Any]:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    commit = (folder / COMMIT).read_text() if (folder / COMMIT).exists() else "unknown"
    return {"date": now, "commit": commit, "budget": budget, "steps": []}


def _step(
    name: str,
    folder: Path,
    out: Path,
    limits: tuple[float, float],
    stand_ins: Mapping[str, str] | None,
) -> dict[str, Any]:
    """One step in a process of its own, of at most so many seconds, its own and those left; what
    became of it, whatever that is.
    """
    found: dict[str, Any] = {"step": name, "device": folder.name, "seconds": 0.0}
    limit = min(limits)
    if limit < LEAST:
        notes = [f"left out: {limits[1]:.0f} s were left"]
        return found | {"table": [], "notes": notes, "wrong": []}
    result, said = (out / f".{folder.name}-{name}.{kind}" for kind in ("json", "txt"))
    command = [sys.executable, __file__, "step", str(folder), "--name", name, "--out", str(result)]
    result.unlink(missing_ok=True)
    start = time.monotonic()
    failed = _failure(command, limit, stand_ins, said)
    found["seconds"] = time.monotonic() - start
    found |= json.loads(result.read_text()) if result.exists() else asdict(Result())
    for kept, text in found.pop("files").items():
        write_text(out / kept, text)
    for file in (result, said):
        file.unlink(missing_ok=True)
    if stand_ins:
        found |= {"wrong": [], "notes": [*found["notes"], "on stand-ins, which compute nothing"]}
    return found | {"wrong": [*found["wrong"], *failed]}


def _failure(
    command: list[str], limit: float, environment: Mapping[str, str] | None, said: Path
) -> list[str]:
    """Runs a command for at most `limit` seconds, its words in the file `said`; nothing that it
    started is left. What went wrong, if anything did.
    """
    with open(said, "wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return [f"not done in {limit:.0f} s"]
    finally:
        with suppress(ProcessLookupError):  # all gone already
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILLED)
    lines = said.read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    return [f"exit status {status}: {last}"] if status else []


def _verdict(found: Mapping[str, Any]) -> str:
    return "; ".join(found["wrong"] or found["notes"][-1:] or ["ok"])


def step(folder: Path, name: str, out: Path) -> None:
    """Runs one step and writes what it found so far, each time that it is more."""
    load_runtime()
    for found in ALL[name][0](Plan.of(folder)):
        write_text(out, json.dumps(asdict(found)))


def markdown(report: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = [f"# GPU session, {report['date']}, commit {report['commit']}", ""]
    for found in report["steps"]:
        lines += [f"## {found['device']}: {found['step']}, {found['seconds']:.1f} s", ""]
        lines += [f"- {note}" for note in found["notes"]]
        lines += [f"- **wrong**: {what}" for what in found["wrong"]]
        lines += ["", markdown_table(found["table"]), ""] if found["table"] else [""]
    return "\n".join(lines)


def dry_run(devices: list[str], budget: float, out: Path, steps: list[str]) -> Iterator[str]:
    """The whole script in small on the devices that are here; CUDA, where it is asked for and isn't
    here, on stand-ins for its libraries. Raises SystemExit where there is no device.
    """
    replaced = "cuda" in devices and not _is_here("cuda")
    here = [device for device in devices if _is_here(device) or (replaced and device == "cuda")]
    if not here:
        raise SystemExit(
            f"none of {', '.join(devices)} is here; they take drivers for CPUs and our runtimes: "
            "make devices"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "session"
        make(folder, here, "sm_90", "tiny")
        stand_ins = cuda_stand_in.build(Path(scratch)) if replaced else None
        yield from run(folder, out, budget, steps, stand_ins, PATIENCE)


def _is_here(device: str) -> bool:
    load_runtime()
    try:
        open_memory(device)
    except MiniCPMError:
        return False
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["make", "run", "step"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("session"))
    parser.add_argument("--device", help="cuda; of a dry run opencl,vulkan, cuda on stand-ins")
    parser.add_argument("--arch", help="of CUDA: sm_90, ...")
    parser.add_argument("--shapes", choices=smoke.SHAPES, default="full")
    parser.add_argument("--budget", type=float, default=420, help="seconds of all steps  [420]")
    parser.add_argument("--steps", default=",".join(ALL), help=f"of {', '.join(ALL)}")
    parser.add_argument("--out", type=Path, default=Path("report"), help="the report's folder")
    parser.add_argument("--dry-run", action="store_true", help="make and run everything in small")
    parser.add_argument("--name", choices=ALL, help=argparse.SUPPRESS)
    found = parser.parse_args()
    if unknown := [name for name in found.steps.split(",") if name not in ALL]:
        parser.error(f"--steps {unknown[0]}: choose of {', '.join(ALL)}")
    return found


def main() -> None:
    given = _arguments()
    try:
        if given.action == "make":
            devices = str(given.device or "cuda").split(",")
            make(given.folder, devices, given.arch, given.shapes)
            return print(f"{given.folder}: {size_of(given.folder)}")
        if given.action == "step":
            return step(given.folder, given.name, given.out)
        devices = str(given.device or ",".join(DRY_DEVICES)).split(",")
        steps = given.steps.split(",")
        lines = (
            dry_run(devices, given.budget, given.out, steps)
            if given.dry_run
            else run(given.folder, given.out, given.budget, steps)
        )
        for line in lines:
            print(line, flush=True)
    except MiniCPMError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
