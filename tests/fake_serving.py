"""Applications of serve over a fake model: no bundle is compiled and no socket opened."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_library import EOS, TOKENIZER, FakeLibrary, manifest, token, use_fake_library

from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.scheduler.jobs import JobBackend
from minicpm_mlc.serve import served as served_room
from minicpm_mlc.serve.app import Settings, make_app
from minicpm_mlc.serve.room import Room
from minicpm_mlc.serve.served import Served

WORDS = ["▁hello", "▁world", "hello"]
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 200,
}


class Slow(FakeLibrary):
    """Says hello for ever, 50 times a second, so that a busy machine's test comes while it does;
    waits for `go` before each prefill once `hold` is set.
    """

    def __init__(self) -> None:
        super().__init__(lambda history: token("▁hello"))
        self.hold = False
        self.go = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)

    def prefill(self, *arguments: Any, **options: Any) -> Any:
        if self.hold:
            self.asked.release()
            self.go.acquire(timeout=60)
        return super().prefill(*arguments, **options)

    def decode(self, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return super().decode(*arguments, **options)


def says(words: list[str]) -> Callable[[list[int]], int]:
    """After the prompt, whose last token is a line end's, these words and then the end."""

    def say(history: list[int]) -> int:
        said = 0
        while said < min(len(words), len(history)) and history[-1 - said] != token("<0x0A>"):
            said += 1
        return token(words[said]) if said < len(words) else EOS

    return say


def write_model(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The files of a bundle that has no library."""
    TOKENIZER.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, EOS], "do_sample": False})
    )
    patch.setattr(served_room, "manifest_sha256", lambda path: "0" * 64)


@contextmanager
def applications(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes applications: make(library, parallel=..., max_waiting=..., **settings)."""
    write_model(folder, patch)
    opened: list[tuple[Engine, JobBackend]] = []

    def make(
        library: FakeLibrary | None = None,
        parallel: int = 1,
        max_waiting: int = 4,
        strict: bool = False,
        **settings: Any,
    ) -> Any:
        model = manifest().model | SIZES
        use_fake_library(patch, lambda: library or FakeLibrary(says(WORDS)), model=model)
        engine = Engine(folder, parallel=parallel)
        backend = JobBackend(engine)
        opened.append((engine, backend))
        return make_app(
            Served(engine, strict_model=strict),
            Room(backend, parallel, max_waiting),
            Settings(**settings),
        )

    yield make
    for engine, backend in opened:
        backend.close()
        engine.close()
