"""Tokens per second with speculation against plain decoding, prompt by prompt in turns, and where
the time goes.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minicpm_mlc.base.text import markdown_table, plain_table
from minicpm_mlc.bench.decode import BenchError, need_positive
from minicpm_mlc.bench.replay import Model, Record
from minicpm_mlc.bench.tasks import OWN, Task, given_tasks, own_tasks, replayed_tasks
from minicpm_mlc.bench.watch import Watch
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.machine import physical_cores
from minicpm_mlc.runtime_py.sampler import Sampler
from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.stats import SpeculationStats


@dataclass(frozen=True)
class Run:
    """One answer: its tokens, the seconds it took once the prompt was read, those in compiled
    functions among them.
    """

    token_ids: list[int]
    seconds: float
    compiled_seconds: float
    stats: SpeculationStats


@dataclass
class SpeculationRow:
    """One kind of prompt. Samples are tokens per second of all its prompts, of each repeat."""

    prompts: str
    count: int
    tokens: int
    plain: list[float]
    speculated: list[float]
    changed: int  # prompts whose answer was another than plain decoding's
    # share of the time with speculation outside compiled functions; None where they don't wait
    python: float | None
    stats: SpeculationStats

    @property
    def speed_up(self) -> float:
        """The median of the repeats, each paired with the plain run beside it."""
        return statistics.median(b / a for a, b in zip(self.plain, self.speculated, strict=True))

    def cells(self) -> list[str]:
        """The row's cells below HEAD."""
        stats = self.stats
        seconds = [
            stats.draft_seconds,
            stats.verify_seconds,
            stats.commit_seconds,
            stats.host_seconds,
        ]
        shares = [f"{part / (sum(seconds) or 1):.0%}" for part in seconds]
        accepted = " ".join(f"{share:.2f}" for share in stats.accepted_shares[:8])
        speeds = [f"{statistics.median(samples):.1f}" for samples in (self.plain, self.speculated)]
        nodes = f"{stats.nodes / stats.rounds:.1f}" if stats.rounds else ""
        length = f"{stats.accept_length:.2f}" if stats.rounds else ""
        counts = [f"{self.count}", f"{self.tokens}"]
        python = "" if self.python is None else f"{self.python:.1%}"
        return [
            self.prompts,
            *counts,
            *speeds,
            f"{self.speed_up:.2f}x",
            length,
            nodes,
            accepted,
            *shares,
            python,
            f"{self.changed}",
        ]

    def decision(self) -> str:
        """What the engine had decided by the row's end."""
        return f"{self.prompts}: speculation {self.stats.decision}"


HEAD = [
    "prompts",
    "count",
    "tokens",
    "plain tokens/s",
    "speculated tokens/s",
    "speed-up",
    "tokens per tree",
    "nodes",
    "accepted by depth",
    "draft",
    "verify",
    "commit",
    "choose",
    "python",
    "changed",
]


@dataclass
class SpeculationReport:
    """The benchmark and how to repeat it.

    Draft, verify, commit and choose are shares of the time spent on trees. "python" is the share of
    all time with speculation outside the library's compiled functions: drafting and choosing,
    sampling, turning arrays into tensors and back. It is left out on a GPU, whose functions return
    before they are done.
    """

    name: str
    scheme: str
    device: str
    threads: int
    command: str
    rows: list[SpeculationRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def head(self) -> str:
        """What was measured, in one line."""
        return f"{self.name} {self.scheme} on {self.device}, {self.threads} threads"

    def plain(self) -> str:
        """For a terminal."""
        notes = "\n".join(self._notes())
        return f"{self.head()}\n{self.command}\n\n{plain_table(self._cells())}\n{notes}"

    def markdown(self) -> str:
        """As a Markdown table."""
        notes = "\n".join(f"- {note}" for note in self._notes())
        return f"{self.head()}\n\n`{self.command}`\n\n{markdown_table(self._cells())}\n\n{notes}"

    def json(self) -> str:
        """One JSON object."""
        rows = [
            asdict(row) | {"speed_up": row.speed_up, "accepted_shares": row.stats.accepted_shares}
            for row in self.rows
        ]
        return json.dumps(asdict(self) | {"rows": rows}, indent=2)

    def _notes(self) -> list[str]:
        return [*(row.decision() for row in self.rows), *self.notes]

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
) -> SpeculationReport:
    """Answers every prompt plainly and with speculation, greedily, in turns.

    Always measured: a text that is copied word for word, one that is copied with changes, and one
    of random tokens of which nothing can be guessed; these answers are given, whatever the model
    would say. With `prompt_file` (one message a line, or .jsonl with a text or a list of messages a
    line) also the model's own answers. `replay` takes acceptance from a record instead, so that a
    model of random weights shows the speed that a trained one would have; `record` writes one.

    Raises BenchError for counts, files and options that can't be used or contradict, SamplingError
    for sizes out of range.
    """
    threads = physical_cores() if threads is None else threads
    need_positive(repeats=repeats, threads=threads, new_tokens=new_tokens)
    _check_drafter(speculate, draft_model, sizes)
    recorded = Record.read(replay) if replay else None
    if recorded:
        _check_replay(recorded, speculate, {"prompt_file": prompt_file, "record": record, **sizes})
    if record:
        _check_record(Path(record), speculate, prompt_file)
    options = recorded.options if recorded else Speculation(speculate, **sizes)
    command = _command(locals())
    with Engine(path, threads=threads, attention=attention, draft=draft_model) as engine:
        kinds = (
            replayed_tasks(engine, recorded)
            if recorded
            else given_tasks(engine.vocab_size, new_tokens)
        )
        kinds |= own_tasks(engine, prompt_file) if prompt_file else {}
        _check_room(engine, kinds, new_tokens)
        bench = _Bench(engine, options, new_tokens, repeats)
        report = SpeculationReport(
            engine.manifest.name,
            engine.manifest.scheme,
            engine.library.device_name,
            threads,
            command,
        )
        report.rows = [bench.row(name, tasks) for name, tasks in kinds.items()]
    if recorded:
        report.notes.append(
            f"acceptance replayed from {replay}: {len(recorded.trees)} trees of {recorded.source}"
        )
    if record:
        report.notes.append(_write(bench.record, report.head(), record))
    return report


def _check_drafter(
    speculate: str, draft_model: str | Path | None, sizes: dict[str, int | None]
) -> None:
    """What the drafter would not use is refused."""
    unused = {} if speculate in ("auto", "draft") else {"draft_model": draft_model}
    if given := _given(unused | (sizes if speculate == "off" else {})):
        raise BenchError(
            f"--speculate {speculate} does not use {given}; leave it out, or choose another drafter"
        )


def _given(options: dict[str, Any]) -> str:
    return ", ".join(
        f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None
    )


def _check_replay(recorded: Record, speculate: str, others: dict[str, Any]) -> None:
    """A record decides drafter, trees and prompt."""
    if given := _given(others):
        raise BenchError(f"--replay decides prompts and trees; leave out {given}")
    if speculate != recorded.drafter:
        raise BenchError(
            f"--speculate {speculate}: the record is of {recorded.drafter}; give --speculate "
            f"{recorded.drafter}"
        )


def _check_record(path: Path, speculate: str, prompt_file: str | Path | None) -> None:
    """Now, not after the benchmark: a record is of one drafter, of the model's own answers, in a
    file that can be made.
    """
    if speculate in ("auto", "off"):
        raise BenchError(
            f"--record is of one drafter, not of {speculate}; give --speculate eagle, ngram or "
            "draft"
        )
    if prompt_file is None:
        raise BenchError(
            "--record keeps what is accepted of the model's own answers; give their prompts with "
            "--prompt-file"
        )
    if path.is_dir() or not path.parent.is_dir():
        raise BenchError(
            f"--record {path}: no file can be written there; give one in a folder that is there"
        )


def _check_room(engine: Engine, kinds: dict[str, list[Task]], new_tokens: int) -> None:
    longest = max(len(task.prompt) for tasks in kinds.values() for task in tasks)
    if longest + new_tokens > engine.context:
        raise BenchError(
            f"--new-tokens {new_tokens} behind a prompt of {longest} tokens: the context holds "
            f"{engine.context}; "
            "give fewer new tokens, or shorter prompts"
        )


def _write(record: Record, source: str, path: str | Path) -> str:
    """Writes the record; returns what to say of it."""
    if not record.trees:
        return f"{path} was not written: no tree was verified in the model's own answers"
    record.source = source
    record.write(path)
    return f"{path}: {len(record.trees)} trees recorded"


class _Bench:
    def __init__(self, engine: Engine, options: Speculation, new_tokens: int, repeats: int) -> None:
        self.engine = engine
        self.repeats = repeats
        self.new_tokens = new_tokens
        self.options: dict[str, Any] = asdict(options)
        self.record = Record(
            options.speculate, draft_depth=options.draft_depth, draft_top_k=options.draft_top_k
        )
        self.watch = Watch(engine)
        # whether a compiled function returns when it is done
        self.waits = DEVICE_RUNTIMES[engine.manifest.target["device"]].in_process

    def row(self, name: str, tasks: Sequence[Task]) -> SpeculationRow:
        """Each prompt of one kind, plain and speculated beside each other, after one round to warm
        up.
        """
        self._answer(tasks[0], {"speculate": "off"})
        self._answer(tasks[0], self.options)
        speeds: tuple[list[float], list[float]] = ([], [])
        runs: list[tuple[Run, Run]] = []
        for _ in range(self.repeats):
            runs = [
                (self._answer(task, {"speculate": "off"}), self._answer(task, self.options))
                for task in tasks
            ]
            if not any(plain.token_ids for plain, _ in runs):
                raise BenchError(
                    f"{name}: every answer is empty, there is nothing to measure; give other "
                    "prompts"
                )
            for side, samples in zip(zip(*runs, strict=True), speeds, strict=True):
                samples.append(
                    sum(len(run.token_ids) for run in side) / sum(run.seconds for run in side)
                )
        changed = sum(plain.token_ids != run.token_ids for plain, run in runs) if name == OWN else 0
        stats = SpeculationStats()
        for _, run in runs:
            stats.merge(run.stats)
        compiled = sum(run.compiled_seconds for _, run in runs) / sum(
            run.seconds for _, run in runs
        )
        python = 1 - compiled if self.waits else None
        return SpeculationRow(
            name,
            len(tasks),
            sum(len(run.token_ids) for _, run in runs),
            *speeds,
            changed,
            python,
            stats,
        )

    def _answer(self, task: Task, options: dict[str, Any]) -> Run:
        self.engine.truncate(0)
        author = task.author()
        answer = []
        sampler = Sampler(SamplingParams(temperature=0), self.engine.vocab_size)
        with self.engine.steps(
            task.prompt, max_tokens=self.new_tokens + 1, temperature=0, **options
        ) as (steps, logits):
            steps.on_round = self.record.add if isinstance(author, Model) else None
            start = time.perf_counter()
            self.watch.seconds = 0.0
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


def _command(given: dict[str, Any]) -> str:
    """The command line that repeats a run."""
    names = (
        "speculate",
        "prompt_file",
        "new_tokens",
        "repeats",
        "threads",
        "attention",
        "draft_model",
        "replay",
        "record",
    )
    options = {name: given[name] for name in names} | given["sizes"]
    words = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in options.items()
        if value is not None
    ]
    return f"minicpm-mlc bench {shlex.quote(str(given['path']))} {' '.join(words)}"
