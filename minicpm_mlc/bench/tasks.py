"""What speculation is measured on: prompts, and who decides the tokens of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.bench.decode import BenchError
from minicpm_mlc.bench.replay import Author, Model, Record, Replay, Script
from minicpm_mlc.prompt.template import Message
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.speculative.steps import Drafter

OWN = "the model's own answers"
COPIED = 256  # tokens of a text that is copied
CHANGED = 24  # in an edited copy, every so many tokens one is another


@dataclass(frozen=True)
class Task:
    """A prompt, and who decides the tokens of the answer."""

    prompt: list[int]
    author: Callable[[], Author]


def given_tasks(vocab_size: int, new_tokens: int) -> dict[str, list[Task]]:
    """Answers that are given: a text copied word for word, copied with changes, and one that
    nothing can guess.
    """
    random = np.random.default_rng(0)
    low = min(100, vocab_size // 2)
    high = vocab_size
    text, other = (random.integers(low, high, COPIED).tolist() for _ in range(2))
    edited = [other[i] if i % CHANGED == CHANGED - 1 else token for i, token in enumerate(text)]
    unknown = random.integers(low, high, 2 * COPIED).tolist()
    answers = {"copied": text, "copied with changes": edited, "nothing to guess": unknown}
    repeated = -(-new_tokens // COPIED)
    return {
        name: [Task(text, lambda answer=answer: Script(answer * repeated))]
        for name, answer in answers.items()
    }


def own_tasks(engine: Engine, prompt_file: str | Path) -> dict[str, list[Task]]:
    """The model's own answers to the prompts of a file."""
    return {OWN: [Task(prompt, Model) for prompt in read_prompts(engine, prompt_file)]}


def replayed_tasks(engine: Engine, record: Record) -> dict[str, list[Task]]:
    """A random prompt whose answer follows the record, its trees drafted by the real drafter.
    Raises BenchError as `replaying` does.
    """
    replay = replaying(engine, record)
    prompt = np.random.default_rng(0).integers(engine.vocab_size, size=COPIED).tolist()
    return {"replayed": [Task(prompt, lambda: replay)]}


def replaying(engine: Engine, record: Record) -> Replay:
    """Puts the record in the place of the engine's drafter, which it still calls. Raises BenchError
    where the engine has no such drafter.
    """
    drafters: dict[str, Drafter] = engine.drafters
    if record.drafter not in drafters:
        raise BenchError(
            f"the record's drafter is {record.drafter}, and {engine.path} has only "
            f"{', '.join(drafters)}"
        )
    replay = drafters[record.drafter] = Replay(record, drafters[record.drafter], engine.vocab_size)
    return replay


def read_prompts(engine: Engine, path: str | Path) -> list[list[int]]:
    """Token ids of each line's prompt, in the bundle's chat template.

    A line is a message, or in a .jsonl file a text or a list of messages. Raises BenchError for a
    file that can't be read or has no prompts, and for a line that is something else.
    """
    lines = [(number, line) for number, line in enumerate(_lines(Path(path)), 1) if line.strip()]
    if not lines:
        raise BenchError(f"{path} has no prompts; give one a line")
    prompts = []
    for number, line in lines:
        try:
            messages = _messages(json.loads(line) if Path(path).suffix == ".jsonl" else line)
            prompts.append(engine.template.prompt(engine.tokenizer.raw, messages, None).ids)
        except (ValueError, RecursionError, TemplateError) as error:
            raise BenchError(
                f"{path}, line {number}: {error}; expected a text or a list of messages"
            ) from None
    return prompts


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BenchError(f"{path} is not UTF-8 text ({error}); save it as that") from None
    except OSError as error:
        raise BenchError(f"--prompt-file {path} can't be read: {error.strerror or error}") from None


def _messages(value: Any) -> list[Message]:
    """Raises ValueError for neither a text nor a list; the template checks the list's messages."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError(f"found {value!r:.80}")
    return value
