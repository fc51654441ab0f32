"""Tokens per second with speculation against plain decoding, prompt by prompt in turns, and where the time goes."""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..bench import BenchError, need_positive
from ..engine import Engine
from ..machine import physical_cores
from ..sampler import Sampler, SamplingParams
from ..tables import markdown_table, plain_table
from .draft_bundle import ModelDrafter
from .options import Speculation
from .replay import Author, Model, Record, Replay, Script
from .stats import SpeculationStats
from .steps import Drafter

COPIED = 256  # tokens of a text that is copied
CHANGED = 24  # in an edited copy, every so many tokens one is another


@dataclass(frozen=True)
class Task:
    """A prompt, and who decides the tokens of the answer."""

    prompt: list[int]
    author: Callable[[], Author]


@dataclass(frozen=True)
class Run:
    """One answer: its tokens, the seconds it took once the prompt was read, those in compiled code among them."""

    token_ids: list[int]
    seconds: float
    compiled_seconds: float
    stats: SpeculationStats


@dataclass
class Row:
    """One kind of prompt. Samples are tokens per second of all its prompts, of each repeat."""

    prompts: str
    count: int
    tokens: int
    plain: list[float]
    speculated: list[float]
    changed: int  # prompts whose answer was another than plain decoding's
    python: float  # share of the time with speculation that was not spent in compiled code
    stats: SpeculationStats

    @property
    def speed_up(self) -> float:
        """The median of the repeats, each paired with the plain run beside it."""
        return statistics.median(b / a for a, b in zip(self.plain, self.speculated, strict=True))

    def cells(self) -> list[str]:
        stats = self.stats
        seconds = [stats.draft_seconds, stats.verify_seconds, stats.commit_seconds, stats.host_seconds]
        shares = [f"{part / (sum(seconds) or 1):.0%}" for part in seconds]
        accepted = " ".join(f"{share:.2f}" for share in stats.accepted_shares[:8])
        speeds = [f"{statistics.median(samples):.1f}" for samples in (self.plain, self.speculated)]
        nodes = f"{stats.nodes / stats.rounds:.1f}" if stats.rounds else ""
        length = f"{stats.accept_length:.2f}" if stats.rounds else ""
        counts = [f"{self.count}", f"{self.tokens}"]
        return [self.prompts, *counts, *speeds, f"{self.speed_up:.2f}x", length, nodes, accepted, *shares, f"{self.python:.1%}",
                f"{self.changed}"]  # fmt: skip


HEAD = ["prompts", "count", "tokens", "plain tokens/s", "speculated tokens/s", "speed-up", "tokens per tree", "nodes",
        "accepted by depth", "draft", "verify", "commit", "choose", "python", "changed"]  # fmt: skip


@dataclass
class Report:
    """The benchmark and how to repeat it.

    Draft, verify, commit and choose are shares of the time spent on trees; "python" is the share of all time with
    speculation that passed outside compiled code, sampling included.
    """

    name: str
    scheme: str
    device: str
    threads: int
    command: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def head(self) -> str:
        return f"{self.name} {self.scheme} on {self.device}, {self.threads} threads"

    def plain(self) -> str:
        notes = "\n".join(self.notes)
        return f"{self.head()}\n{self.command}\n\n{plain_table(self._cells())}\n{notes}"

    def markdown(self) -> str:
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"{self.head()}\n\n`{self.command}`\n\n{markdown_table(self._cells())}\n\n{notes}"

    def json(self) -> str:
        rows = [asdict(row) | {"speed_up": row.speed_up, "accepted_shares": row.stats.accepted_shares} for row in self.rows]
        return json.dumps(asdict(self) | {"rows": rows}, indent=2)

    def _cells(self) -> list[list[str]]:
        return [HEAD, *(row.cells() for row in self.rows)]


def bench_speculation(
    path: str | Path,
    speculate: str,
    prompt_file: str | Path | None = None,
    new_tokens: int = 128,
    repeats: int = 3,
    threads: int | None = None,
    attention: str = "auto",
    draft_model: str | Path | None = None,
    replay: str | Path | None = None,
    record: str | Path | None = None,
    **sizes: int | None,
) -> Report:
    """Answers every prompt plainly and with speculation, greedily, in turns.

    Always measured: a text that is copied word for word, one that is copied with changes, and one of random tokens of
    which nothing can be guessed; these answers are given, whatever the model would say. With `prompt_file` (one message
    a line, or .jsonl with a text or a list of messages a line) also the model's own answers. `replay` takes acceptance from a
    record instead, so that a model of random weights shows the speed that a trained one would have; `record` writes one.

    Raises BenchError for counts and files that can't be used, SamplingError for sizes out of range.
    """
    threads = physical_cores() if threads is None else threads
    need_positive(repeats=repeats, threads=threads, new_tokens=new_tokens)
    recorded = Record.read(replay) if replay else None
    options = recorded.options if recorded else Speculation(speculate, **sizes)
    command = _command(locals())
    with Engine(path, threads=threads, attention=attention, draft=draft_model) as engine:
        kinds = _replayed(engine, recorded) if recorded else _tasks(engine, prompt_file, new_tokens)
        bench = _Bench(engine, options, new_tokens, repeats)
        report = Report(engine.manifest.name, engine.manifest.scheme, engine.library.memory.name, threads, command)
        report.rows = [bench.row(name, tasks) for name, tasks in kinds.items()]
        report.notes = [f"speculation at the end: {engine.stats.speculation.decision}"]
        if recorded:
            report.notes.append(f"acceptance replayed from {replay}: {len(recorded.trees)} trees of {recorded.source}")
    if record:
        bench.record.source = report.head()
        bench.record.write(record)
    return report


class _Bench:
    def __init__(self, engine: Engine, options: Speculation, new_tokens: int, repeats: int) -> None:
        self.engine, self.repeats, self.new_tokens = engine, repeats, new_tokens
        self.options: dict[str, Any] = asdict(options)
        self.record = Record(options.speculate, draft_depth=options.draft_depth, draft_top_k=options.draft_top_k)
        self.watch = Watch(engine)

    def row(self, name: str, tasks: Sequence[Task]) -> Row:
        """Each prompt of one kind, plain and speculated beside each other, after one round to warm up."""
        self._answer(tasks[0], {"speculate": "off"})
        self._answer(tasks[0], self.options)
        speeds: tuple[list[float], list[float]] = ([], [])
        runs: list[tuple[Run, Run]] = []
        for _ in range(self.repeats):
            runs = [(self._answer(task, {"speculate": "off"}), self._answer(task, self.options)) for task in tasks]
            for side, samples in zip(zip(*runs, strict=True), speeds, strict=True):
                samples.append(sum(len(run.token_ids) for run in side) / sum(run.seconds for run in side))
        changed = sum(plain.token_ids != run.token_ids for plain, run in runs) if name == OWN else 0
        stats = SpeculationStats()
        for _, run in runs:
            stats.merge(run.stats)
        python = 1 - sum(run.compiled_seconds for _, run in runs) / sum(run.seconds for _, run in runs)
        return Row(name, len(tasks), sum(len(run.token_ids) for _, run in runs), *speeds, changed, python, stats)

    def _answer(self, task: Task, options: dict[str, Any]) -> Run:
        self.engine.truncate(0)
        author, answer = task.author(), []
        sampler = Sampler(SamplingParams(temperature=0), self.engine.vocab_size)
        with self.engine.steps(task.prompt, max_tokens=self.new_tokens + 1, temperature=0, **options) as (steps, logits):
            steps.on_round = self.record.add if isinstance(author, Model) else None
            start, self.watch.seconds = time.perf_counter(), 0.0
            with suppress(StopIteration):
                while len(answer) < self.new_tokens:
                    token = author.next(steps, sampler.sample(logits))
                    if isinstance(author, Model) and token in self.engine.eos_token_ids:
                        break
                    answer.append(token)
                    logits = steps.next(token)
            steps.settle()
            seconds = time.perf_counter() - start
        return Run(answer, seconds, self.watch.seconds, self.engine.stats.speculation)


class Watch:
    """Times the compiled calls of an engine, and of its draft bundle."""

    CALLS = ("prefill", "decode", "verify", "commit", "draft_extend", "draft_step")

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        drafts = [drafter.library for drafter in engine.drafters.values() if isinstance(drafter, ModelDrafter)]
        for library in (engine.library, *drafts):
            for name in self.CALLS:
                setattr(library, name, self._timed(getattr(library, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            result = call(*args)
            self.seconds += time.perf_counter() - start
            return result

        return timed


OWN = "the model's own answers"


def _replayed(engine: Engine, record: Record) -> dict[str, list[Task]]:
    """A random prompt whose answer follows the record, its trees drafted by the real drafter."""
    drafters: dict[str, Drafter] = engine.drafters
    if record.drafter not in drafters:
        raise BenchError(f"the record's drafter is {record.drafter}, and {engine.path} has only {', '.join(drafters)}")
    replay = drafters[record.drafter] = Replay(record, drafters[record.drafter], engine.vocab_size)
    prompt = np.random.default_rng(0).integers(engine.vocab_size, size=COPIED).tolist()
    return {"replayed": [Task(prompt, lambda: replay)]}


def _tasks(engine: Engine, prompt_file: str | Path | None, new_tokens: int) -> dict[str, list[Task]]:
    random = np.random.default_rng(0)
    low, high = min(100, engine.vocab_size // 2), engine.vocab_size
    text, other = (random.integers(low, high, COPIED).tolist() for _ in range(2))
    edited = [other[i] if i % CHANGED == CHANGED - 1 else token for i, token in enumerate(text)]
    unknown = random.integers(low, high, 2 * COPIED).tolist()
    answers = {"copied": text, "copied with changes": edited, "nothing to guess": unknown}
    repeated = -(-new_tokens // COPIED)
    tasks = {name: [Task(text, lambda answer=answer: Script(answer * repeated))] for name, answer in answers.items()}
    if prompt_file:
        tasks[OWN] = [Task(prompt, Model) for prompt in read_prompts(engine, prompt_file)]
    return tasks


def read_prompts(engine: Engine, path: str | Path) -> list[list[int]]:
    """Token ids of each line's prompt, in the bundle's chat template. Raises BenchError for a file without any."""
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        values = [json.loads(line) if str(path).endswith(".jsonl") else line for line in lines]
    except ValueError as error:
        raise BenchError(f"{path} has a line that is not JSON ({error}); expected a text or a list of messages") from None
    if not values:
        raise BenchError(f"{path} has no prompts; give one a line")
    messages = [[{"role": "user", "content": value}] if isinstance(value, str) else value for value in values]
    return [engine.template.prompt(engine.tokenizer.raw, each, None).ids for each in messages]


def _command(given: dict[str, Any]) -> str:
    """The command line that repeats a run."""
    names = ("speculate", "prompt_file", "new_tokens", "repeats", "threads", "attention", "draft_model", "replay", "record")
    options = {name: given[name] for name in names} | given["sizes"]
    words = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return f"minicpm-mlc bench {shlex.quote(str(given['path']))} {' '.join(words)}"
