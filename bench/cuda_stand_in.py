"""What a decode step asks of CUDA, counted on stand-ins for the driver: no GPU is needed, and the
tokens mean nothing.

    minicpm-mlc compile MODEL --device cuda --arch sm_90 -o BUNDLE
    python bench/cuda_stand_in.py BUNDLE --depth 0,1024
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from minicpm_mlc.base.text import plain_table

SOURCE = Path(__file__).parent / "stand_ins" / "cuda.c"
NAMES = (
    "launches",
    "copies",
    "mallocs",
    "frees",
    "waits",
    "graph launches",
    "recordings",
    "pinned",
)
SYMBOLS = "libcudart.so.13 { global: *; };\n"
STEPS = 16


def build(folder: Path) -> dict[str, str]:
    """Compiles both libraries into a folder; returns the environment of a process that loads
    them.
    """
    version = folder / "symbols.map"
    version.write_text(SYMBOLS)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-O1", "-w", "-shared", "-fPIC", str(SOURCE)]
    runtime, driver = folder / "libcudart.so.13", folder / "libcuda.so.1"
    options = [f"-Wl,-soname,{runtime.name}", f"-Wl,--version-script={version}"]
    subprocess.run([*compiler, *options, "-o", str(runtime)], check=True)
    linked = ["-DDRIVER", f"-Wl,-soname,{driver.name}", str(runtime), "-o", str(driver)]
    subprocess.run([*compiler, *linked], check=True)
    return os.environ | {"LD_LIBRARY_PATH": str(folder)}


def counts() -> dict[str, int]:
    """What was asked of the stand-ins so far."""
    library = ctypes.CDLL("libcudart.so.13")
    values = (ctypes.c_long * len(NAMES)).in_dll(library, "stand_in_counts")
    return dict(zip(NAMES, values, strict=True))


def counted(bundle: Path, depth: int) -> dict[str, float]:
    """Of one step, behind `depth` tokens that were not computed: the mean of STEPS in a row."""
    from minicpm_mlc import Engine

    with Engine(bundle, context=depth + 64) as engine:
        engine.model.sequence.reserve(depth)
        engine.model.sequence.append([0] * depth)
        for _ in range(4):  # a plain one, a recording, and what comes after them
            engine.greedy(5)
        before = counts()
        for _ in range(STEPS):
            engine.greedy(5)
        return {name: (count - before[name]) / STEPS for name, count in counts().items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--depth", default="0,1024", help="tokens in the cache")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.inside:
        with tempfile.TemporaryDirectory() as folder:
            again = [sys.executable, *sys.argv, "--inside"]
            raise SystemExit(subprocess.run(again, env=build(Path(folder))).returncode)
    depths = list(map(int, given.depth.split(",")))
    rows = [[depth, *counted(given.bundle, depth).values()] for depth in depths]
    print(plain_table([["depth", *NAMES], *([f"{value:g}" for value in row] for row in rows)]))


if __name__ == "__main__":
    main()
