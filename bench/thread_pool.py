"""Our thread pool against TVM's on one bundle for the CPU: alone, with another program on one of
the cores, and two engines at once.

    minicpm-mlc compile MiniCPM4-0.5B --random-weights --context 2048 -o build/05b
    python bench/thread_pool.py build/05b

Tokens per second, medians of the rounds. The sides are processes of their own that take turns and
are stopped in between, as TVM's threads spin while they wait.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, NEW = 512, 48  # tokens
PARTS = ("prefill", "decode")


def use_tvm_pool(library: Path, threads: int) -> None:
    """Undo what the engine did when it loaded the library; to be called in the thread that
    computes.
    """
    from minicpm_mlc.bench.timing import use_threads

    use_threads(threads)
    runtime = ctypes.CDLL(None).TVMBackendParallelLaunch
    pointer = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "__TVMBackendParallelLaunch")
    pointer.value = ctypes.cast(runtime, ctypes.c_void_p).value


class Runner:
    """An engine, or two that compute at once in threads of their own."""

    def __init__(self, bundle: Path, threads: int, engines: int, tvm_pool: bool) -> None:
        from minicpm_mlc import Engine

        self.engines = [Engine(bundle, PROMPT + NEW, threads) for _ in range(engines)]
        vocabulary = self.engines[0].vocab_size
        self.ids = np.random.default_rng(0).integers(10, vocabulary, PROMPT).tolist()
        if tvm_pool:
            use_tvm_pool(bundle / self.engines[0].manifest.library, threads)
        for engine in self.engines:  # pages mapped, threads awake
            engine.prefill(self.ids[:64])

    def measure(self, part: str) -> float:
        """Tokens per second of "prefill" or "decode", of all engines together."""
        for engine in self.engines:
            engine.truncate(0)
            if part == "decode":
                engine.prefill(self.ids[:8])
        start = time.perf_counter()
        run = self._prefill if part == "prefill" else self._decode
        _at_once([lambda engine=engine: run(engine) for engine in self.engines])
        tokens = PROMPT if part == "prefill" else NEW
        return len(self.engines) * tokens / (time.perf_counter() - start)

    def _prefill(self, engine: Any) -> None:
        engine.prefill(self.ids)

    def _decode(self, engine: Any) -> None:
        for token in self.ids[:NEW]:
            engine.decode(token)


def _at_once(calls: list[Callable[[], None]]) -> None:
    """The first call in this thread, others in their own."""
    others = [threading.Thread(target=call) for call in calls[1:]]
    for thread in others:
        thread.start()
    calls[0]()
    for thread in others:
        thread.join()


def serve(pipe: Connection, *runner: Any) -> None:
    """A side's process: measures what it is asked for."""
    side = Runner(*runner)
    pipe.send(None)
    while part := pipe.recv():
        pipe.send(side.measure(part))


class Side:
    """A runner in a process of its own, stopped while it isn't asked."""

    def __init__(self, *runner: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, there = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(there, *runner), daemon=True)
        self.process.start()
        there.close()  # a process that fails ends the wait for it
        self.pipe.recv()
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def begin(self, part: str) -> None:
        self._signal(signal.SIGCONT)
        self.pipe.send(part)

    def end(self) -> float:
        rate = self.pipe.recv()
        self._signal(signal.SIGSTOP)
        return rate

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self.pipe.send("")
        self.process.join()


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


@contextmanager
def busy_core() -> Iterator[None]:
    """Another program computes on the last of this process's cores."""
    process = multiprocessing.get_context("spawn").Process(
        target=_spin, args=(max(os.sched_getaffinity(0)),), daemon=True
    )
    process.start()
    time.sleep(0.5)  # it has begun
    try:
        yield
    finally:
        process.terminate()
        process.join()


def measure(bundle: Path, threads: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Tokens per second of each situation, by "prefill" and "decode", a number for each round."""
    tvm, own, second = (Side(bundle, threads, 1, pool == "tvm") for pool in ("tvm", "own", "own"))
    two = Side(bundle, threads, 2, False)
    rates: dict[str, dict[str, list[float]]] = {}

    def take(name: str, *sides: Side) -> None:
        for part in PARTS:
            for side in sides:
                side.begin(part)
            rate = sum([side.end() for side in sides])
            rates.setdefault(name, {}).setdefault(part, []).append(rate)

    for _ in range(rounds):
        take("TVM's pool", tvm)
        take("own pool", own)
        with busy_core():
            take("TVM's pool, a core busy", tvm)
            take("own pool, a core busy", own)
        take("two engines in one process", two)
        take("two processes", own, second)
    for side in (tvm, own, second, two):
        side.close()
    return rates


RATIOS = (  # what, against what, the floors of prefill and decode
    ("own pool", "TVM's pool", (1.0, 1.0)),
    ("own pool, a core busy", "own pool", (0.65, 0.5)),
    ("two engines in one process", "own pool", (0.9, 0.9)),
    ("two processes", "own pool", (0.9, 0.9)),
)


def ratios(rates: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Medians of the ratios within each round."""
    rows = []
    for name, against, floors in RATIOS:
        for part, floor in zip(PARTS, floors, strict=True):
            pairs = zip(rates[name][part], rates[against][part], strict=True)
            ratio = statistics.median(one / other for one, other in pairs)
            rows.append({"what": name, "of": against, "part": part, "ratio": ratio, "floor": floor})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rates = measure(args.bundle, args.threads, args.rounds)
    rows = ratios(rates)
    if args.json:
        print(json.dumps({"tokens_per_second": rates, "ratios": rows}))
        return
    for name, parts in rates.items():
        medians = (f"{part} {statistics.median(parts[part]):6.1f}" for part in PARTS)
        print(f"{name:<28} {', '.join(medians)} tokens/s")
    for row in rows:
        print(
            f"{row['part']:<8} {row['what']} / {row['of']}: {row['ratio']:.2f} "
            f"(floor {row['floor']})"
        )


if __name__ == "__main__":
    main()
