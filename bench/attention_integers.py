"""Attention over an int8 cache by integer dot products against the same in float32, taking turns in
one run.

    python bench/attention_integers.py                     # one thread, CPU time
    python bench/attention_integers.py --threads 2         # wall time
    python bench/attention_integers.py --dot avx2 --depth 8192 --rows 1,512 --preset MiniCPM4.1-8B

One layer of a preset's heads, random keys and values. `--dot` takes the level that is named, where
the processor has it; the float32 side has the vectors of that level.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from linear import measure

from minicpm_mlc.base.text import plain_table
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.ops.formats.kv import INT8

LEVELS = {"avx2": "x86-64-v3", "avxvnni": "alderlake", "avx512vnni": "native", "native": "native"}
Call = Callable[[], Any]


@dataclass(frozen=True)
class Speed:
    """Median milliseconds of a call on each side, and the median of the paired ratios."""

    heads: str
    dot: str
    depth: int
    rows: int
    float32_ms: float
    integers_ms: float
    ratio: float


def calls(heads: tuple[int, int, int], dot: str, depth: int, rows: int) -> dict[str, Call]:
    """A call of each side: the last `rows` rows at `depth` tokens; of one row decode's kernel."""
    import tvm

    from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill
    from minicpm_mlc.ops.build import build
    from minicpm_mlc.targets.cpu import CpuTarget

    target = CpuTarget.of(LEVELS[dot])
    traits = replace(target.traits, int8_dot=target.int8_dot if dot == "native" else dot)
    rng, pages = np.random.default_rng(0), -(-depth // 64)
    q = rng.standard_normal((rows, *heads[::2]), dtype=np.float32)
    places = rng.permutation(pages).astype(np.int32)[None], np.arange(depth - rows, depth)

    def call(kv: Any) -> Call:
        kind = AttendDecode if rows == 1 else AttendPrefill
        function = build(kind(*heads, kv), traits).with_attr("global_symbol", "main")
        module = tvm.IRModule({"main": function})
        pipeline = target.tir_pipeline()
        run = tvm.compile(module, target.tvm_target(), tir_pipeline=pipeline)["main"]
        stored = kv.random_pages(np.random.default_rng(1), pages, *heads[1:])
        out = np.zeros((rows, heads[0] * heads[2]), np.float32)
        arrays = q, *stored, places[0], places[1].astype(np.int32), out
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        return lambda: run(*tensors)

    return {"float32": call(INT8), "integers": call(traits.laid_out(INT8))}


def compare(args: argparse.Namespace, preset: str, depth: int, rows: int) -> Speed:
    """Both sides in turns, some calls at a time."""
    config = PRESETS[preset]
    heads = config.num_heads, config.num_kv_heads, config.head_dim
    sides = calls(heads, args.dot, depth, rows)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    start = clock()
    sides["integers"]()
    times = max(1, int(0.02 / max(clock() - start, 1e-6)))
    several = {
        name: lambda call=call: [call() for _ in range(times)] for name, call in sides.items()
    }
    seconds = measure(several, args.repeats, clock)
    ratio = statistics.median(
        a / b for a, b in zip(seconds["float32"], seconds["integers"], strict=True)
    )
    float32, integers = (1e3 * statistics.median(each) / times for each in seconds.values())
    return Speed("/".join(map(str, heads)), args.dot, depth, rows, float32, integers, ratio)


def text(device: str, threads: int, rows: list[Speed]) -> str:
    head = ["heads/kv/d", "products", "depth", "rows", "float32 ms", "integers ms", "ratio"]
    lines = [_line(row) for row in rows]
    clock = "CPU time" if threads == 1 else "wall time"
    return f"{device}, {threads} threads, {clock}, int8 cache\n{plain_table([head, *lines])}"


def _line(r: Speed) -> list[str]:
    times = [f"{r.float32_ms:.3f}", f"{r.integers_ms:.3f}", f"{r.ratio:.2f}x"]
    return [r.heads, r.dot, str(r.depth), str(r.rows), *times]


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", action="append", choices=PRESETS, help="whose heads; may repeat"
    )
    parser.add_argument("--dot", choices=LEVELS, default="native", help="the level of both sides")
    parser.add_argument("--depth", type=numbers, default=[1024, 8192], help="tokens  [1024,8192]")
    parser.add_argument("--rows", type=numbers, default=[1, 512], help="1 is decode  [1,512]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(args.threads)  # before TVM starts its pool

    from minicpm_mlc.runtime_py.machine import cpu_name

    presets = args.preset or ["MiniCPM4-0.5B", "MiniCPM4.1-8B"]
    shapes = [(p, d, r) for p in presets for d in args.depth for r in args.rows if r <= d]
    rows = [compare(args, *shape) for shape in shapes]
    result = {"device": cpu_name(), "threads": args.threads, "rows": [asdict(r) for r in rows]}
    print(json.dumps(result, indent=1) if args.json else text(cpu_name(), args.threads, rows))


if __name__ == "__main__":
    main()
