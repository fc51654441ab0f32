"""Several answers together against one alone, and what the linear kernels gain from as many rows.

    minicpm-mlc compile MiniCPM4-0.5B --random-weights --context 4096 -o build/05b
    python bench/together.py build/05b --rows 8

Both sides of each pair take turns in one run. A step is the scheduler's: the compiled call, drawing
the tokens (greedily), and all bookkeeping. The kernels are those of the model's matrices, one layer
after the other, then the head.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import linear
import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.runtime_py.generation import Ids
from minicpm_mlc.runtime_py.machine import cpu_name
from minicpm_mlc.runtime_py.scheduler.task import Task

PROMPT = 64  # tokens
REST = 0.5  # seconds: threads that wait for work spin a while


def answers(engine: Engine, rows: int, steps: int) -> float:
    """Tokens per second of so many answers, once all of them decode."""
    rng = np.random.default_rng(rows)
    said: list[list[object]] = [[] for _ in range(rows)]
    tasks = []
    for heard in said:
        prompt = rng.integers(5, engine.vocab_size - 5, PROMPT).tolist()
        request = engine.request(prompt, {"temperature": 0, "speculate": "off"})
        tasks.append(Task(engine.generation(request, Ids()), heard.append))
        engine.scheduler.submit(tasks[-1])
    while len(engine.scheduler.running) < rows or engine.scheduler.tasks[rows:]:
        engine.scheduler.step()
    engine.scheduler.step()
    before = sum(map(len, said))
    start = time.perf_counter()
    for _ in range(steps):
        engine.scheduler.step()
    seconds = time.perf_counter() - start
    made = sum(map(len, said)) - before
    for task in tasks:
        engine.scheduler.cancel(task)
    engine.scheduler.sweep()
    engine.truncate(0)
    return made / seconds


def kernels(engine: Engine, rows: int) -> Callable[[], Any]:
    """A pass through the linear kernels of one step with so many rows."""
    manifest = engine.manifest
    model, scheme = manifest.model, manifest.scheme
    hidden, inner, head_dim = (
        model[name] for name in ("hidden_size", "intermediate_size", "head_dim")
    )
    heads, kv_heads, layers = (model[name] for name in ("num_heads", "num_kv_heads", "num_layers"))
    shapes = [
        (scheme, (heads + 2 * kv_heads) * head_dim, hidden, layers),
        (scheme, hidden, heads * head_dim, layers),
        (scheme, 2 * inner, hidden, layers),
        (scheme, hidden, inner, layers),
        (manifest.embedding_scheme, model["vocab_size"], hidden, 1),
    ]
    dot = linear.native().int8_dot
    passes = [linear.Kernels(name, rows, *shape).int8(dot) for name, *shape in shapes]
    return lambda: [run() for run in passes]


def gain_of_kernels(engine: Engine, rows: int, repeats: int) -> list[float]:
    """Rows per second of the kernels at `rows` rows against one, of each pair."""
    sides = {str(n): kernels(engine, n) for n in (1, rows)}
    seconds = linear.measure(sides, repeats, time.perf_counter)
    return [rows * one / many for one, many in zip(seconds["1"], seconds[str(rows)], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(args.threads)  # before TVM starts its pool
    with Engine(args.bundle, threads=args.threads, parallel=args.rows) as engine:
        engine.eos_token_ids = frozenset()
        kernel_gains = gain_of_kernels(engine, args.rows, args.repeats)
        time.sleep(REST)
        answers(engine, args.rows, 2)
        pairs = [
            (answers(engine, 1, args.steps), answers(engine, args.rows, args.steps))
            for _ in range(args.repeats)
        ]
    gains = [many / one for one, many in pairs]
    result = {
        "device": cpu_name(),
        "threads": args.threads,
        "alone_tokens_per_second": statistics.median(one for one, _ in pairs),
        "together_tokens_per_second": statistics.median(many for _, many in pairs),
        "gain": statistics.median(gains),
        "kernels_gain": statistics.median(kernel_gains),
        "share": statistics.median(gains) / statistics.median(kernel_gains),
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{result['device']}, {args.threads} threads, {args.rows} answers of {args.bundle.name}: "
        f"{result['alone_tokens_per_second']:.1f} tok/s alone, "
        f"{result['together_tokens_per_second']:.1f} together, {result['gain']:.2f}x; "
        f"the linear kernels {result['kernels_gain']:.2f}x; share {result['share']:.0%}"
    )


if __name__ == "__main__":
    main()
