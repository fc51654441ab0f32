"""How soon a chat answers and what memory it takes: the whole command, from the shell to the end of
an answer of one token.

    # a bundle of random weights, in build/bench
    python bench/vs_llama.py --preset MiniCPM4.1-8B --prepare
    python bench/startup.py build/bench/MiniCPM4.1-8B-w4-cpu
    # a long prompt: what computing it takes beside
    python bench/startup.py build/bench/MiniCPM4.1-8B-w4-cpu --words 1000

The first run, which checks the files' hashes and brings them into the system's cache, is not
counted. Memory is the largest resident set, mapped weights included.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.bench.decode import need_positive
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.runtime_py.machine import cpu_name

QUESTION = "why is the sky blue "


def run(command: list[str]) -> tuple[float, int]:
    """Seconds and the largest resident bytes of a command."""
    start = time.perf_counter()
    pid = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{shlex.join(command)} failed; its error is printed above")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(bundle: Path, repeats: int, threads: int | None, words: int) -> dict[str, Any]:
    """Medians over `repeats` runs, in seconds and bytes; `weights` is the size of the bundle's
    weight files.

    Raises BenchError for counts below 1, BundleError for the bundle.
    """
    need_positive(repeats=repeats, words=words)
    files = read_bundle(bundle).manifest.files
    weights = sum(
        entry["bytes"] for name, entry in files.items() if name.startswith("params_shard")
    )
    options = [
        "--max-tokens",
        "1",
        "--temperature",
        "0",
        *(["--threads", str(threads)] if threads else []),
    ]
    prompt = " ".join((QUESTION * words).split()[:words])
    command = [
        sys.executable,
        "-m",
        "minicpm_mlc",
        "chat",
        str(bundle),
        "--prompt",
        prompt,
        *options,
    ]
    run(command)
    seconds, resident = zip(*(run(command) for _ in range(repeats)), strict=True)
    return {
        "bundle": bundle.name,
        "device": cpu_name(),
        "seconds": statistics.median(seconds),
        "resident": max(resident),
        "weights": weights,
        "beside": max(resident) - weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--words", type=int, default=5, help="of the prompt")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        found = measure(args.bundle, args.repeats, args.threads, args.words)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    if args.json:
        return print(json.dumps(found, indent=2))
    print(
        "{bundle} on {device}: an answer of one token took {seconds:.2f} s, from the command to "
        "its end".format(**found)
    )
    mib = {name: found[name] / 2**20 for name in ("resident", "weights", "beside")}
    print(
        "{resident:.0f} MiB resident: {weights:.0f} MiB of weights and {beside:.0f} MiB beside "
        "them".format(**mib)
    )


if __name__ == "__main__":
    main()
