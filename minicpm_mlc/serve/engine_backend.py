"""Jobs answered one after the other, on an engine's one conversation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.events import Counts, Ended, Event, Failed, Job, Scored, Started
from minicpm_mlc.runtime_py.generation import Generation
from minicpm_mlc.runtime_py.scores import score, scores

Emit = Callable[[Event], None]


class Cancelled(Exception):
    """The job's client is gone."""


class RunningJob:
    """A job that waits or runs."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self.job = job
        self.emit = emit
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ends it at its next token or chunk."""
        self._cancelled.set()

    def check(self, *_: int) -> None:
        """Raises Cancelled once it is."""
        if self._cancelled.is_set():
            raise Cancelled


class EngineBackend:
    """Answers jobs in the order of coming. No other thread may use the engine meanwhile."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.SimpleQueue[RunningJob | None] = queue.SimpleQueue()
        self._running: RunningJob | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job, emit: Emit) -> RunningJob:
        """Takes a job; `emit` gets its events in the backend's thread."""
        running = RunningJob(job, emit)
        self._waiting.put(running)
        return running

    def close(self) -> None:
        """Cancels what runs and waits, and ends the thread."""
        self._closed = True
        if running := self._running:
            running.cancel()
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (running := self._waiting.get()) is not None:
            self._running = running
            if self._closed:
                running.cancel()
            try:
                self._answer(running)
            except BaseException as error:  # a panic of the tokenizer's too; the next job goes on
                running.emit(Failed(error))

    def _answer(self, running: RunningJob) -> None:
        job = running.job
        done = 0
        try:
            started = self._score_prompt(running) if job.echo else None
            if started:
                running.emit(started)
            for choice in range(job.n):
                self._choose(running, choice, started is None and choice == 0)
                done = choice + 1
        except Cancelled:
            for choice in range(done, job.n):
                running.emit(Ended(choice, "cancelled", Counts(len(job.token_ids))))

    def _score_prompt(self, running: RunningJob) -> Started:
        job = running.job
        found = [Scored(job.token_ids[0])]
        with closing(self._engine.prompt_logits(job.token_ids)) as chunks:
            for done, rows in chunks:
                running.check()
                following = job.token_ids[done - len(rows) + 1 : done + 1]
                found += scores(rows[: len(following)], following, job.logprobs or 0)
        return Started(len(job.token_ids), 0, tuple(found))

    def _choose(self, running: RunningJob, choice: int, first: bool) -> None:
        job = running.job
        if job.empty:
            running.emit(Ended(choice, "length", Counts(len(job.token_ids))))
            return
        reader = job.reader(choice)
        generation = self._generation(running, choice)
        generation.force(reader.forced())
        try:
            with closing(self._tokens(generation, running, first)) as tokens:
                for token in tokens:
                    for event in reader.feed(token):
                        running.emit(event)
                    if reader.stop is not None:
                        break
                    generation.force(reader.forced())
        except Cancelled:
            reason = "cancelled"
        else:
            reason = "stop" if reader.stop is not None else generation.stats.finish_reason or ""
        for event in reader.finish():
            running.emit(event)
        counts = replace(_counts(generation), reasoning_tokens=reader.reasoning_tokens)
        ended = generation.stats.finish_reason == "stop"
        last = self._end_token(job, generation) if ended else None
        running.emit(Ended(choice, reason, counts, reader.stop, last))
        if reason == "cancelled":
            raise Cancelled

    def _generation(self, running: RunningJob, choice: int) -> Generation:
        job = running.job
        options = job.options.copy()
        seed = options.get("seed")
        options["seed"] = None if seed is None else seed + choice
        options["constraint"] = job.constraint(choice) if job.constraint else None
        options["on_prefill"] = running.check
        return self._engine.generation(job.token_ids, **options)

    def _tokens(
        self, generation: Generation, running: RunningJob, first: bool
    ) -> Generator[Scored]:
        job = running.job
        stats = generation.stats
        running.check()
        with closing(generation.tokens()) as tokens:
            for token_id in tokens:
                if first:
                    running.emit(Started(stats.prompt_tokens, stats.cached_tokens))
                    first = False
                running.check()
                if job.logprobs is None:
                    yield Scored(token_id)
                else:
                    yield score(generation.logits, token_id, job.logprobs)
        if first:
            running.emit(Started(stats.prompt_tokens, stats.cached_tokens))

    def _end_token(self, job: Job, generation: Generation) -> Scored | None:
        if job.logprobs is None or generation.end_token is None:
            return None
        return score(generation.logits, generation.end_token, job.logprobs)


def _counts(generation: Generation) -> Counts:
    stats = generation.stats
    speculation = stats.speculation
    return Counts(
        stats.prompt_tokens,
        stats.cached_tokens,
        stats.generated_tokens,
        prompt_seconds=stats.prefill_seconds,
        decode_seconds=stats.decode_seconds,
        draft_tokens=speculation.nodes - speculation.rounds,
        draft_accepted=speculation.accepted,
    )
