"""One verification of a token tree against as many decode steps, taking turns in one run.

    # a bundle of random weights, in build/bench
    python bench/vs_llama.py --preset MiniCPM4.1-8B --layers 4 --prepare
    BUNDLE=build/bench/MiniCPM4.1-8B-4-layers-w4-cpu
    python bench/verify.py $BUNDLE --rows 16 --depth 0,32768

The tree is a chain: every node but the first has the one before it as its parent. The cache holds
random numbers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from minicpm_mlc import Engine
from minicpm_mlc.base.choices import ATTENTION
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench.decode import BenchError, need_depths, need_positive, need_room
from minicpm_mlc.bench.limits import measure_limits, memory_reader
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bundle.manifest import MAX_TREE_NODES, Manifest
from minicpm_mlc.runtime_py.machine import cpu_name, physical_cores

ROOM = 128  # tokens of context beside the depth


@dataclass(frozen=True)
class VerifyRow:
    """Medians in seconds: `rows` decode steps, and one verification of as many nodes."""

    depth: int
    rows: int
    decode: float
    verify: float

    def cells(self) -> list[str]:
        times = [
            f"{1e3 * self.decode:.2f}",
            f"{1e3 * self.verify:.2f}",
            f"{1e3 * self.decode / self.rows:.2f}",
        ]
        return [f"{self.depth}", f"{self.rows}", *times, f"{self.decode / self.verify:.2f}x"]


HEAD = ["depth", "rows", "decode steps, ms", "one verification, ms", "one decode step, ms", "ratio"]


def compare(engine: Engine, depth: int, rows: int, repeats: int) -> VerifyRow:
    """Both at `depth` cached tokens, which stay as they are."""
    model = engine.model
    chain = list(range(-1, rows - 1))

    def decode() -> None:
        for _ in range(rows):
            engine.decode(1)

    def verify() -> None:
        model.verify([1] * rows, chain)

    pairs = []
    for _ in range(repeats + 1):
        pairs.append((seconds(decode), (engine.truncate(depth), seconds(verify))[1]))
        engine.truncate(depth)
    decoded, verified = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    return VerifyRow(depth, rows, decoded, verified)


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--rows",
        type=numbers,
        default=[16],
        help="nodes of the tree, at most 64; 4,16,64 for several",
    )
    parser.add_argument("--depth", dest="depths", type=numbers, default=[0, 1024], help="0,1024")
    parser.add_argument("--attention", choices=ATTENTION, default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    try:
        context = check(args)
        limits = measure_limits(args.threads, memory_reader(args.threads))
        with Engine(
            args.bundle, context=context, threads=args.threads, attention=args.attention
        ) as engine:
            found = []
            for depth in args.depths:
                fill_cache(engine, depth)
                found += [compare(engine, depth, rows, args.repeats) for rows in args.rows]
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    if args.json:
        rows = [asdict(row) for row in found]
        return print(
            json.dumps({"device": cpu_name(), "limits": asdict(limits), "rows": rows}, indent=2)
        )
    command = shlex.join(["python", "bench/verify.py", *sys.argv[1:]])
    table = (markdown_table if args.markdown else plain_table)(
        [HEAD, *(row.cells() for row in found)]
    )
    print(f"{args.bundle.name} on {cpu_name()}, {limits.text()}\n{command}\n\n{table}")


def check(args: argparse.Namespace) -> int:
    """The context that the run needs. Raises BenchError naming the option that can't be."""
    need_positive(repeats=args.repeats, threads=args.threads, rows=min(args.rows))
    need_depths(args.depths)
    if max(args.rows) > MAX_TREE_NODES:
        raise BenchError(
            f"--rows {max(args.rows)}: a tree has at most {MAX_TREE_NODES} nodes; give fewer"
        )
    context = max(args.depths) + ROOM
    need_room(Manifest.load(args.bundle), args.depths, context)
    return context


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
