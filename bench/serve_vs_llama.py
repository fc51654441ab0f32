"""Eight requests at once, by `minicpm-mlc serve` and by llama.cpp, of one GGUF file.

    python bench/serve_vs_llama.py MODEL.gguf --threads 2
    python bench/serve_vs_llama.py MODEL.gguf --requests 8 --prompt 512 --tokens 128 --repeats 3

Sides take turns, each in a process of its own, on the same random prompts, greedily and without
speculation:

- minicpm-mlc: its server, asked over HTTP;
- llama.cpp: its library, all sequences in one batch as in its own server, without HTTP.

llama-cpp-python's server is no side: it answers one request at a time, and takes no token ids.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from serve import server
from sides import LlamaCpp

from minicpm_mlc.compile import compile_model
from minicpm_mlc.runtime_py.machine import cpu_name

Prompts = list[list[int]]


@dataclass(frozen=True)
class Load:
    """What is asked for: so many requests of so many tokens, and as long answers."""

    requests: int
    prompt: int
    tokens: int

    @property
    def context(self) -> int:
        """Tokens of one request, with some to spare."""
        return self.prompt + self.tokens + 64

    def prompts(self, vocab: int, seed: int) -> Prompts:
        """Random ones."""
        rng = np.random.default_rng(seed)
        return rng.integers(5, vocab - 5, (self.requests, self.prompt)).tolist()


def over_http(address: str, prompts: Prompts, tokens: int) -> float:
    """Seconds until a server has answered all."""

    def ask(prompt: list[int]) -> int:
        body = {"model": "any", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        body |= {"ignore_eos": True, "speculate": "off"}
        data = json.dumps(body).encode()
        asked = urllib.request.Request(
            f"http://{address}/v1/completions", data, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked) as reply:
            return json.load(reply)["usage"]["completion_tokens"]

    start = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        said = list(pool.map(ask, prompts))
    seconds = time.perf_counter() - start
    if min(said) < tokens // 2:
        raise SystemExit(f"answers ended early, after {said} tokens: other prompts are needed")
    return seconds * tokens * len(prompts) / sum(said)  # as if none had


class Batched(LlamaCpp):
    """All sequences in one batch."""

    def __init__(self, path: str, load: Load, threads: int) -> None:
        self._sequences = load.requests
        super().__init__(path, load.requests * load.context, threads)
        self._tokens = self.api.llama_batch_init(self.batch, 0, 1)

    def _params(self, context: int, threads: int, kv: str) -> Any:
        params = super()._params(context, threads, kv)
        params.n_seq_max = self._sequences
        return params

    def step(self, rows: list[tuple[int, int, int]], scored: bool) -> np.ndarray:
        """Computes rows of (token, position, sequence); the likeliest token after each, or after
        the last.
        """
        batch = self._tokens
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = scored or i == len(rows) - 1
        if status := self.api.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode returned {status}; raise the context")
        asked = range(len(rows)) if scored else [len(rows) - 1]
        return np.array([self._likeliest(i) for i in asked])

    def _likeliest(self, row: int) -> int:
        logits = self.api.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())

    def answer(self, prompts: Prompts, tokens: int) -> float:
        """Seconds for all answers."""
        memory = self.api.llama_get_memory(self.context)
        self.api.llama_memory_clear(memory, ctypes.c_bool(True))
        start = time.perf_counter()
        last = []
        for sequence, prompt in enumerate(prompts):
            rows = [(token, at, sequence) for at, token in enumerate(prompt)]
            for first in range(0, len(rows), self.batch):
                (said,) = self.step(rows[first : first + self.batch], scored=False)
            last.append(said)
        for at in range(len(prompts[0]), len(prompts[0]) + tokens - 1):
            last = self.step([(int(t), at, s) for s, t in enumerate(last)], scored=True)
        return time.perf_counter() - start


def batched(pipe: object, path: str, load: Load, threads: int) -> None:
    """A process that answers prompts when it is told to."""
    side = Batched(path, load, threads)
    pipe.send(side.vocab_size)  # type: ignore[attr-defined]
    while True:
        pipe.send(side.answer(*pipe.recv()))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bundle", type=Path, help="the same model compiled; made where missing")
    args = parser.parse_args()
    load = Load(args.requests, args.prompt, args.tokens)
    bundle = args.bundle or args.gguf.with_suffix(".bundle")
    if not bundle.exists():
        compile_model(args.gguf, bundle)
    times = measure(str(args.gguf), str(bundle), load, args.threads, args.repeats)
    print(f"{cpu_name()}, {args.threads} threads; {' '.join(sys.argv)}")
    total = load.requests * load.tokens
    fastest = statistics.median(times["minicpm-mlc"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:<18} {total / median:7.1f} tokens/s  minicpm-mlc {median / fastest:.2f}x")


def measure(
    gguf: str, bundle: str, load: Load, threads: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each side, taking turns."""
    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    llama_cpp = spawn.Process(target=batched, args=(other, gguf, load, threads), daemon=True)
    llama_cpp.start()
    vocab = pipe.recv()
    each = ["--threads", str(threads), "--parallel", str(load.requests)]
    with server(bundle, *each, "--context", str(load.context)) as address:

        def llama(prompts: Prompts) -> float:
            pipe.send((prompts, load.tokens))
            return pipe.recv()

        sides: dict[str, Callable[[Prompts], float]] = {
            "minicpm-mlc": lambda prompts: over_http(address, prompts, load.tokens),
            "llama.cpp": llama,
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(repeats):
            for name, answer in sides.items():
                time.sleep(0.5)  # another side's threads wait for work spinning
                times[name].append(answer(load.prompts(vocab, repeat)))
    llama_cpp.terminate()
    return times


if __name__ == "__main__":
    main()
