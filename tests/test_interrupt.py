"""How soon Ctrl-C ends the reading of a prompt: what is computed between two places where it can,
counted in tokens of machines of many speeds.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from fake_library import FakeLibrary, use_fake_library

from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.generation import Ids
from minicpm_mlc.runtime_py.scheduler.chunks import LEAST, Chunks

LONGEST = 0.3  # seconds from Ctrl-C to its effect
PROMPT = 40_000  # tokens
PAGE, CHUNK = 64, 2048  # of real bundles

STEADY: dict[str, Callable[[int], float]] = {  # seconds of a token, by those before it
    "a small model": lambda at: 1e-4,
    "an 8B model": lambda at: 1.3e-2,
    "dense attention over a long text": lambda at: 1e-3 * (1 + at / 5000),
}
BUSY: dict[str, Callable[[int], float]] = {
    "a machine that becomes busy": lambda at: 1e-3 if at < 8000 else 6e-3,
    "a model of the smallest size beside a build": lambda at: 5e-5 if at < 20_000 else 4e-4,
}


def chunks_of(seconds: Callable[[int], float]) -> list[tuple[int, float]]:
    """Tokens and seconds of the chunks that a prompt is read in."""
    chunks, done, read = Chunks(PAGE), 0, []
    while done < PROMPT:
        tokens = min(chunks.watched, CHUNK, PROMPT - done)
        took = tokens * seconds(done + tokens)
        chunks.took(tokens, took)
        read.append((tokens, took))
        done += tokens
    return read


@pytest.mark.parametrize("name", STEADY)
def test_no_chunk_of_a_watched_prompt_takes_longer(name: str) -> None:
    assert all(took <= LONGEST for _, took in chunks_of(STEADY[name]))


@pytest.mark.parametrize("name", BUSY)
def test_a_machine_that_becomes_slower_is_waited_for_once(name: str) -> None:
    late = [took for _, took in chunks_of(BUSY[name]) if took > LONGEST]
    assert len(late) <= 1


def test_short_chunks_are_few() -> None:
    """They cost a call each: a prompt is not read in the smallest ones."""
    read = chunks_of(STEADY["a small model"])
    assert sum(tokens == LEAST for tokens, _ in read) == 1 and len(read) < 30


class Pressing(FakeLibrary):
    """Ctrl-C is pressed in the middle of its third call."""

    def prefill(self, *args: Any, **named: Any) -> Any:
        outputs = super().prefill(*args, **named)
        if len(self.calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return outputs


def test_nothing_is_computed_after_the_call_in_which_ctrl_c_is_pressed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_fake_library(monkeypatch, Pressing, prefill_chunk=16)
    engine = Engine("")
    options = {"on_prefill": lambda done, total: None}
    prompt = engine.request([1, *range(30, 130)], options)
    with pytest.raises(KeyboardInterrupt):
        list(engine.read(engine.generation(prompt, Ids())))
    library = engine.library
    assert isinstance(library, Pressing) and len(library.calls) == 3
    assert 0 < engine.stats.computed_tokens <= sum(library.calls) < 100
