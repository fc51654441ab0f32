"""What a server adds to the engine: per token of a stream, and until the first token of a prompt;
and how long a stream waits for another request's prompt.

    python bench/serve.py build/demo
    python bench/serve.py MiniCPM4-0.5B-w4a-cpu --tokens 128 --repeats 5

The server is a process of its own; engine and server take turns, repeat by repeat, on the same
random prompts without speculation. The times are medians; those of the server are what a client on
this machine sees, over HTTP.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from minicpm_mlc.runtime_py.constraints import NoEnd
from minicpm_mlc.runtime_py.engine import Engine

SHORT, LONG, LONGEST = 64, 4096, 16384  # tokens of a prompt
ALONE = 16  # tokens that a stream has before another request comes


@contextmanager
def server(bundle: str, *options: str) -> Iterator[str]:
    """`minicpm-mlc serve`, and its host and port."""
    command = [sys.executable, "-m", "minicpm_mlc", "serve", bundle, "--port", "0", *options]
    with (
        tempfile.TemporaryFile("w+") as log,  # a line for each request
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout
        said = process.stdout.readline()
        if "http://" not in said:
            process.wait(30)
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} did not start:\n{log.read()}")
        try:
            yield said.split("http://")[1].split()[0]
        finally:
            process.terminate()


def stream(address: str, prompt: list[int], tokens: int) -> Iterator[float]:
    """When each event of a stream comes, in seconds from the request on."""
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "speculate": "off",
    }
    connection = http.client.HTTPConnection(address)
    start = time.perf_counter()
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    if reply.status != 200:
        raise SystemExit(reply.read().decode())
    while line := reply.readline():
        if line.startswith(b"data: {"):
            yield time.perf_counter() - start
    connection.close()


def per_token(engine: Engine, address: str, tokens: int, repeats: int) -> dict[str, float]:
    """Microseconds of a token after the first, by the engine and through the server."""
    mine, theirs = [], []
    for repeat in range(repeats):
        prompt = ids(engine, SHORT, repeat)
        mine.append(engine_seconds(engine, prompt, tokens))
        times = list(stream(address, prompt, tokens))
        theirs.append((times[-1] - times[0]) / (tokens - 1))
    engine_us, server_us = (1e6 * statistics.median(times) for times in (mine, theirs))
    return {
        "engine, us a token": engine_us,
        "server, us a token": server_us,
        "added": server_us / engine_us - 1,
    }


def engine_seconds(engine: Engine, prompt: list[int], tokens: int) -> float:
    """Seconds of a token after the first, by engine.generate."""
    endless = NoEnd(engine.eos_token_ids, None)
    pieces = engine.generate(
        prompt, stream=True, max_tokens=tokens, temperature=0, speculate="off", constraint=endless
    )
    next(pieces)
    start = time.perf_counter()
    for _ in pieces:
        pass
    return (time.perf_counter() - start) / (tokens - 1)


def first_token(engine: Engine, address: str, repeats: int) -> dict[str, float]:
    """Milliseconds until the first token of a long prompt that is new, and that is cached."""
    length = min(LONG, engine.context - 8)
    fresh, cached = [], []
    for repeat in range(repeats):
        prompt = ids(engine, length, 1000 + repeat)
        fresh.append(next(stream(address, prompt, 1)))
        cached.append(next(stream(address, prompt, 1)))
    new_ms, cached_ms = (1e3 * statistics.median(times) for times in (fresh, cached))
    return {"prompt": length, "new, ms": new_ms, "cached, ms": cached_ms, "x": new_ms / cached_ms}


def longest_wait(engine: Engine, address: str) -> dict[str, float]:
    """Milliseconds between two tokens of a stream while another request's long prompt is computed,
    at most, and the usual ones.
    """
    length = min(LONGEST, engine.context - 8)
    times: list[float] = []
    with ThreadPoolExecutor(1) as other:
        for at in stream(address, ids(engine, SHORT, 2000), engine.context - SHORT):
            times.append(at)
            if len(times) == ALONE:
                long = other.submit(next, stream(address, ids(engine, length, 2001), 1))
            if len(times) > ALONE and long.done():
                break
    gaps = [1e3 * (after - before) for before, after in pairwise(times)]
    usual, longest = statistics.median(gaps[: ALONE - 1]), max(gaps[ALONE - 1 :])
    return {"prompt": length, "usual, ms": usual, "longest, ms": longest}


def ids(engine: Engine, length: int, seed: int) -> list[int]:
    """A random prompt."""
    numbers = random.Random(seed)
    return [numbers.randrange(3, engine.vocab_size) for _ in range(length)]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with Engine(given.bundle, parallel=1) as engine:
        with server(given.bundle, "--parallel", "2") as address:
            report: dict[str, Any] = {
                "model": engine.manifest.name,
                "threads": engine.threads,
                "command": " ".join(sys.argv),
                **per_token(engine, address, given.tokens, given.repeats),
                **{f"first token: {k}": v for k, v in first_token(engine, address, 3).items()},
                **{f"waiting: {k}": v for k, v in longest_wait(engine, address).items()},
            }
    if given.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:<28} {value:.4g}" if isinstance(value, float) else f"{name:<28} {value}")


if __name__ == "__main__":
    main()
