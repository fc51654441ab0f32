"""What the CPU kernels of a level reach, beside what the level could: one table of all kernels.

    python bench/cpu_levels.py --level avx2 --level avx512vnni --markdown
    python bench/cpu_levels.py --level dotprod --level i8mm --markdown     # counted alone

Counted: products an instruction in the loop that a prefill spends its time in, their share of the
peak loop's, which does nothing else, and the most accesses to the stack in any loop of products.
Measured, where this machine has the level: one thread, processor time, random numbers that the
caches hold; the limit is what the peak loop reaches in the same run. What a single row of a product
is bound by is memory: bench/linear.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cpu_static import LEVELS, PEAKS, PRODUCTS, RECORDS, loops_of, most_stack
from linear import PROCESSORS, measure

from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench.timing import compiled
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.cpu.speed_limits import INT8_CHAINS, STEPS, int8_operations
from minicpm_mlc.ops.operator import POOL, Argument, Cost, Extent
from minicpm_mlc.ops.quantize_rows import words_of
from minicpm_mlc.targets.cpu import CpuTarget

MEASURED = PROCESSORS | {"avx512vnni": "native"}  # as what their kernels are compiled here
DEPTH = 8192  # tokens of attention and scores
ROWS = 64
SHAPE = 4096, 4096  # of a product whose time is measured
SECONDS = 0.03  # that a pass lasts about
FLOAT32_OPERATIONS = 2 * 16  # a multiply-add in 16 lanes
COLUMNS = ["kernel", "rows", "products an instruction", "of the peak loop", "stack accesses"]
COLUMNS += ["GOP/s", "of the limit"]


@dataclass(frozen=True)
class Limits:
    """Operations a second of one thread, of each kind."""

    float32: float
    int8: float

    def text(self) -> str:
        """Both."""
        float32, int8 = (f"{rate / 1e9:.0f}" for rate in (self.float32, self.int8))
        return f"one thread: {float32} GFLOP/s float32, {int8} GOP/s int8"

    def share(self, cost: Cost, seconds: float) -> float:
        """Of the limit that a call's products have."""
        return cost.operations / seconds / (self.int8 if cost.int8 else self.float32)


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median processor time of a call, of many at a time."""
    start = time.thread_time()
    call()
    times = max(1, int(SECONDS / max(time.thread_time() - start, 1e-6)))
    several = {"": lambda: [call() for _ in range(times)]}
    return statistics.median(measure(several, repeats, time.thread_time)[""]) / times


def limits_of(target: CpuTarget, repeats: int) -> Limits:
    """Measured on one thread of this machine."""
    import tvm

    def rate(function: Any, dtype: str, operations: int) -> float:
        run, out = compiled(function, target), tvm.runtime.empty((1, 16), dtype)
        return STEPS * operations / seconds(lambda: run(out), repeats)

    assert target.int8_dot is not None, target
    float32 = target.traits.peak_vectors * FLOAT32_OPERATIONS
    int8 = INT8_CHAINS * int8_operations(target.int8_dot)
    return Limits(
        rate(PEAKS["float32 peak"](target), "float32", float32),
        rate(PEAKS["int8 peak"](target), "int32", int8),
    )


def speed_of(kernel: str, rows: int, target: CpuTarget, repeats: int) -> tuple[float, Cost]:
    """Seconds of a call of a kernel, and its cost."""
    import tvm

    sizes = SHAPE if kernel in PRODUCTS else ()
    record: Any = RECORDS[kernel](target, *sizes)
    pages = DEPTH // PAGE_SIZE
    dims = {"n": rows, "m": rows, "s": 1, "p": pages, POOL: pages}
    arrays = random_call(record, dims)
    run, tensors = compiled(build(record, target.traits), target), map(tvm.runtime.tensor, arrays)
    held = list(tensors)
    cost = record.cost(Extent(dims, pages, pages))
    return seconds(lambda: run(*held), repeats), cost


def random_call(record: Any, dims: dict[str, int]) -> list[np.ndarray]:
    """Arguments of a call, at the end of DEPTH tokens."""
    rng = np.random.default_rng(0)
    given = {
        "page_tables": rng.permutation(dims["p"]).astype(np.int32)[None],
        **dict.fromkeys(
            ("slots", "positions"), np.arange(DEPTH - dims["n"], DEPTH, dtype=np.int32)
        ),
    }
    arguments = record.arguments()
    if "k_pages" in arguments:
        pools = record.kv.random_pages(rng, dims[POOL], record.num_kv_heads, record.head_dim)
        given |= dict(zip(("k_pages", "v_pages"), pools, strict=True))
    if arguments.get("x") and arguments["x"].words:
        x = rng.standard_normal((dims["m"], record.k), np.float32)
        given["x"] = words_of(x, record.sum_factor)
    return [given.get(name, random_of(each, dims, rng)) for name, each in arguments.items()]


def random_of(argument: Argument, dims: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    """Numbers of an argument's dtype; scales in float16 as large as a model's, as processors widen
    subnormal ones slowly.
    """
    shape, dtype = argument.sizes(dims), np.dtype(argument.dtype)
    if dtype == np.float16:
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    span = np.iinfo(dtype)
    return rng.integers(span.min, span.max, shape, dtype, endpoint=True)


def counts(level: str, kernel: str) -> list[str]:
    """The cells of what is counted."""
    loops = loops_of(level, kernel)
    (peak,) = loops_of(level, f"{'int8' if loops[0].int8 else 'float32'} peak")[:1]
    per = loops[0].products_per_instruction
    share = per / peak.products_per_instruction
    return [f"{per:.1f}", f"{share:.0%}", f"{most_stack(loops).stack}"]


def measured(kernel: str, rows: int, target: CpuTarget, limits: Limits, repeats: int) -> list[str]:
    """The cells of what is measured."""
    took, cost = speed_of(kernel, rows, target, repeats)
    return [f"{cost.operations / took / 1e9:.0f}", f"{limits.share(cost, took):.0%}"]


def table(level: str, repeats: int) -> tuple[str, list[list[str]]]:
    """A level's heading and its table."""
    kernels = {kernel: 1 if kernel.startswith("decode") else ROWS for kernel in RECORDS}
    if level not in MEASURED:
        lines = [[k, str(n), *counts(level, k), "", ""] for k, n in kernels.items()]
        return f"{level}, as compiled for {LEVELS[level].cpu}, counted", [COLUMNS, *lines]
    target = CpuTarget.of(MEASURED[level])
    limits = limits_of(target, repeats)
    head = f"{level}, {limits.text()}"
    lines = [
        [k, str(n), *counts(level, k), *measured(k, n, target, limits, repeats)]
        for k, n in kernels.items()
    ]
    return head, [COLUMNS, *lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", action="append", choices=list(LEVELS), help="may repeat  [all]")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = "1"  # before TVM starts its pool
    for level in args.level or LEVELS:
        head, cells = table(level, args.repeats)
        print(f"{head}\n\n{(markdown_table if args.markdown else plain_table)(cells)}\n")


if __name__ == "__main__":
    main()
