"""Chats, cancellations, gear shifts, speculation and cuts in a loop: what a process that lives long
does to its memory, files and threads.

    python bench/soak.py build/demo --minutes 120
    python bench/soak.py build/demo-eagle --draft build/demo --minutes 10 --seed 2

Prints resident memory, open files and threads while it runs, and how they drift: the lowest of the
run's last tenth against the lowest of its second, when every kind of call has been made. What goes
up and down, as results that are kept for a while, is no drift. More than 1 % of memory, or one more
file or thread, makes the exit status 1. Answers are checked on the way: the same question with the
same seed has the same answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import ContextError, MiniCPMError

QUESTIONS = (
    "What is 4827 + 356?",
    "What does minicpm-mlc do?",
    "Tell me about cats.",
    "Why? " * 60,
)
ALLOWED_DRIFT = 0.01  # of resident memory
TENTHS = 10


class SoakError(Exception):
    """An answer that is another one than before."""


@dataclass(frozen=True)
class Sample:
    """The process at one moment; memory in bytes."""

    seconds: float
    calls: int
    resident: int
    files: int
    threads: int

    def line(self) -> str:
        """One line for people."""
        memory = f"{self.resident / 2**20:8.1f} MiB"
        counts = f"{self.files:3d} files {self.threads:3d} threads"
        return f"{self.seconds / 60:7.1f} min {self.calls:8d} calls {memory} {counts}"


def sample(start: float, calls: int) -> Sample:
    """What /proc says of this process. Raises OSError where there is no /proc."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
    return Sample(time.monotonic() - start, calls, resident, files, threads)


@dataclass
class Soak:
    """Random calls of one engine."""

    engine: Engine
    rng: random.Random
    answers: dict[tuple[str, int, str], str] = field(default_factory=dict)

    def call(self) -> None:
        """One call of a random kind."""
        self.rng.choice(CALLS)(self)

    def chat(self) -> None:
        """An answer, plain or speculated: with its seed it is always the same."""
        question, seed = self.rng.choice(QUESTIONS), self.rng.randrange(3)
        gear = self.engine.gears.attention
        drafter = self.rng.choice(["off", "auto", *self.engine.drafters])
        text = self.engine.chat(
            [{"role": "user", "content": question}],
            max_tokens=24,
            seed=seed,
            temperature=0.5 if seed else 0,
            speculate=drafter,
        )
        known = self.answers.setdefault((question, seed, gear), text)
        if known != text and self.engine.manifest.activations == "int8":  # else sums round
            raise SoakError(f"{question!r}, seed {seed}, {gear}, {drafter}: {known!r} is {text!r}")

    def cancelled(self) -> None:
        """A stream that is left after some pieces."""
        message = [{"role": "user", "content": self.rng.choice(QUESTIONS)}]
        with closing(self.engine.chat_events(message, max_tokens=60)) as events:
            for _ in zip(range(self.rng.randrange(6)), events, strict=False):
                pass

    def shifted(self) -> None:
        """Another gear, where there is one."""
        if self.engine.manifest.dense_len is not None:
            self.engine.shift(self.rng.choice(["auto", "dense", "sparse"]))

    def cut(self) -> None:
        """The conversation goes back to some length, and on from there."""
        self.engine.truncate(self.rng.randint(0, len(self.engine.cached_tokens)))
        self.engine.prefill(self._ids(40))
        self.engine.decode(self._ids(1)[0])

    def scored(self) -> None:
        """Logits of a text of any length."""
        self.engine.logits(self._ids(self.rng.randint(1, min(300, self.engine.context))))

    def beside(self) -> None:
        """A second sequence and a fork of it."""
        self.engine.truncate(0)
        model = self.engine.open_sequence()
        for _ in model.prefill(self._ids(100), self.engine.prefill_chunk):
            pass
        fork = model.fork()
        fork.decode(5)
        fork.free()
        model.free()

    def refused(self) -> None:
        """A prompt that is too long."""
        try:
            self.engine.generate([5] * (self.engine.context + 1))
        except ContextError:
            return
        raise SoakError("a prompt longer than the context was taken")

    def from_a_thread(self) -> None:
        """An answer in a thread of its own, as servers make them."""
        thread = threading.Thread(target=self.chat)
        thread.start()
        thread.join()

    def _ids(self, count: int) -> list[int]:
        return [self.rng.randrange(self.engine.vocab_size) for _ in range(count)]


CALLS: tuple[Callable[[Soak], None], ...] = (
    Soak.chat,
    Soak.chat,
    Soak.cancelled,
    Soak.shifted,
    Soak.cut,
    Soak.scored,
    Soak.beside,
    Soak.refused,
    Soak.from_a_thread,
)


def soak(engine: Engine, seconds: float, seed: int, every: float) -> Iterator[Sample]:
    """Calls for so long; a sample every so many seconds. Raises SoakError for a wrong answer."""
    running, start, calls, due = Soak(engine, random.Random(seed)), time.monotonic(), 0, 0.0
    while (now := time.monotonic() - start) < seconds:
        running.call()
        calls += 1
        if now >= due:
            due = now + every
            yield sample(start, calls)
    yield sample(start, calls)


def drift(samples: list[Sample]) -> dict[str, float]:
    """Of memory as a share, of files and threads as counts: the lowest of the last tenth against
    that of the second.
    """
    size = max(1, len(samples) // TENTHS)
    early, late = samples[size : 2 * size] or samples[:1], samples[-size:]

    def more(name: str) -> int:
        before, after = (min(getattr(one, name) for one in part) for part in (early, late))
        return after - before

    lowest = min(one.resident for one in early)
    counts = {name: more(name) for name in ("files", "threads")}
    return {"resident": more("resident") / lowest} | counts


def steady(found: dict[str, float]) -> bool:
    """Whether a process could go on like this for ever."""
    return found["resident"] <= ALLOWED_DRIFT and found["files"] <= 0 and found["threads"] <= 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--draft", type=Path, help="a smaller bundle that drafts")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="every sample, instead of lines")
    args = parser.parse_args()
    seconds, samples = 60 * args.minutes, []
    every = max(0.2, seconds / 200)
    try:
        options = {"context": args.context, "threads": args.threads, "draft": args.draft}
        with Engine(args.bundle, **options) as engine:
            for one in soak(engine, seconds, args.seed, every):
                samples.append(one)
                if not args.json and len(samples) % TENTHS == 1:
                    print(one.line(), flush=True)
    except (MiniCPMError, SoakError) as error:
        sys.exit(f"error: {error}")
    found = drift(samples)
    if args.json:
        print(json.dumps({"drift": found, "samples": [asdict(one) for one in samples]}, indent=1))
    else:
        print(
            "drift: memory {resident:+.2%}, files {files:+g}, threads {threads:+g}".format(**found)
        )
    sys.exit(not steady(found))


if __name__ == "__main__":
    main()
