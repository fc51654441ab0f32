"""Several answers together against one alone, and what the linear kernels gain from as many rows.

    minicpm-mlc compile MiniCPM4-0.5B --random-weights --context 4096 -o build/05b
    python bench/together.py build/05b --rows 8

Both sides of each pair take turns in one run. A step is the scheduler's: the compiled call, drawing
the tokens (greedily), and all bookkeeping. The linear kernels are the library's own, watched in
steps of their own. With one thread it is CPU time, which is right on a busy machine too.
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

import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.runtime_py.generation import Ids
from minicpm_mlc.runtime_py.machine import cpu_name
from minicpm_mlc.runtime_py.scheduler.task import Task

PROMPT = 64  # tokens


def clock_of(engine: Engine) -> Callable[[], float]:
    """Seconds of the processor where one thread computes, else of the wall."""
    return time.thread_time if engine.threads == 1 else time.perf_counter


def answers(engine: Engine, rows: int, steps: int) -> tuple[float, float]:
    """Of so many answers, once all of them decode: tokens per second, and tokens per second of the
    linear kernels, watched in steps of their own.
    """
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
    clock = clock_of(engine)
    start = clock()
    for _ in range(steps):
        engine.scheduler.step()
    seconds = clock() - start
    made = sum(map(len, said)) - before
    with LinearTime(engine) as linear:
        for _ in range(steps // 2):
            engine.scheduler.step()
    for task in tasks:
        engine.scheduler.cancel(task)
    engine.scheduler.sweep()
    engine.truncate(0)
    return made / seconds, rows * (steps // 2) / linear.seconds


class LinearTime:
    """Seconds that a library spends in its linear kernels, while it is watched."""

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        self._clock = clock_of(engine)
        assert engine.library.local
        self._instrument = engine.library.local.instrument

    def __enter__(self) -> LinearTime:
        self.seconds = 0.0
        self._instrument(self._report)
        return self

    def __exit__(self, *_: object) -> None:
        self._instrument(None)

    def _report(self, function: Any, name: str, before: bool, result: Any, *args: Any) -> int:
        if name.startswith("linear"):
            self.seconds += (-1 if before else 1) * self._clock()
        return 0


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
    with Engine(args.bundle, threads=args.threads, parallel=args.rows) as engine:
        engine.eos_token_ids = frozenset()
        answers(engine, args.rows, 2)
        pairs = [
            (answers(engine, 1, args.steps), answers(engine, args.rows, args.steps))
            for _ in range(args.repeats)
        ]
    gains = [many / one for (one, _), (many, _) in pairs]
    kernel_gains = [many / one for (_, one), (_, many) in pairs]
    result = {
        "device": cpu_name(),
        "threads": args.threads,
        "alone_tokens_per_second": statistics.median(one for (one, _), _ in pairs),
        "together_tokens_per_second": statistics.median(many for _, (many, _) in pairs),
        "gain": statistics.median(gains),
        "kernels_gain": statistics.median(kernel_gains),
        "share": statistics.median(a / b for a, b in zip(gains, kernel_gains, strict=True)),
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
