"""A server's jobs as tasks: their events, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol
from weakref import WeakSet

from minicpm_mlc.runtime_py.events import Counts, Ended, Event, Failed, Job, Reader, Started
from minicpm_mlc.runtime_py.generation import Generation, TokenReader
from minicpm_mlc.runtime_py.request import Options, Request
from minicpm_mlc.runtime_py.scheduler.task import Over, Progress, Task

Emit = Callable[[Event], None]


class Runs(Protocol):
    """What is needed of an engine."""

    def request(self, token_ids: Sequence[int], options: Mapping[str, Any]) -> Request:
        """A checked request."""
        ...

    def generation(self, request: Request, reader: TokenReader) -> Generation:
        """What answers it."""
        ...

    def submit(
        self, generation: Generation, emit: Callable[[object], None], client: str = ""
    ) -> Task:
        """Has it go on by itself."""
        ...

    def until(self, done: Callable[[], bool]) -> None:
        """Returns when it is done."""

    def cancel(self, task: Task) -> None:
        """Ends a task before the next step."""


class JobBackend:
    """Answers jobs together, as many at once as the engine does."""

    def __init__(self, engine: Runs) -> None:
        self._engine = engine
        self._jobs: WeakSet[RunningJob] = WeakSet()  # tasks hold those that are not over

    def submit(self, job: Job, emit: Emit) -> RunningJob:
        """Takes a job; `emit` gets its events in the thread that computes. Raises what
        `Engine.generate` does for options that can't be.
        """
        running = RunningJob(self._engine, job, emit)
        self._jobs.add(running)
        running.start()
        return running

    def close(self) -> None:
        """Cancels what runs and waits."""
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        self._engine.until(lambda: all(job.over for job in jobs))


class RunningJob:
    """A job, one task for each of its choices. The first computes the prompt, the others find its
    pages.
    """

    def __init__(self, engine: Runs, job: Job, emit: Emit) -> None:
        self._engine = engine
        self._job = job
        self._emit = emit
        self._choices = [self._generation(choice) for choice in range(job.n)]
        self._tasks: list[Task] = []
        self._left = job.n

    def start(self) -> None:
        """Hands its choices in."""
        for choice, (generation, reader) in enumerate(self._choices):
            if self._left <= 0:
                return
            emit = _Choice(self, choice, generation, reader)
            self._tasks.append(self._engine.submit(generation, emit, self._job.client))

    @property
    def over(self) -> bool:
        """Whether its last event was told."""
        return self._left <= 0

    def cancel(self) -> None:
        """Ends the choices that have not ended, before the next step."""
        for task in self._tasks:
            self._engine.cancel(task)

    def tell(self, event: Event) -> None:
        """Tells one event; after the last one nothing more."""
        if self._left <= 0:
            return
        self._emit(event)
        if isinstance(event, Ended):
            self._left -= 1
        elif isinstance(event, Failed):
            self._left = 0
            self.cancel()

    def _generation(self, choice: int) -> tuple[Generation, Reader]:
        job = self._job
        options: Options = job.options.copy()
        seed = options.get("seed")
        options["seed"] = None if seed is None else seed + choice
        options["constraint"] = job.constraint(choice) if job.constraint else None
        request = self._engine.request(job.token_ids, options)
        request = replace(request, logprobs=job.logprobs, echo=job.echo and choice == 0)
        if job.empty:
            request = replace(request, max_tokens=0)
        reader = job.reader(choice)
        return self._engine.generation(request, reader), reader


class _Choice:
    """Makes a job's events of what one of its tasks says."""

    def __init__(
        self, running: RunningJob, choice: int, generation: Generation, reader: Reader
    ) -> None:
        self._running = running
        self._choice = choice
        self._generation = generation
        self._reader = reader

    def __call__(self, event: object) -> None:
        stats = self._generation.stats
        if isinstance(event, Progress):
            if event.done == event.total and self._choice == 0:
                scores = tuple(self._generation.prompt_scores)
                self._running.tell(Started(stats.prompt_tokens, stats.cached_tokens, scores))
        elif isinstance(event, Over):
            self._end(event.error)
        else:
            self._running.tell(event)  # type: ignore[arg-type]

    def _end(self, error: BaseException | None) -> None:
        if error:
            self._running.tell(Failed(error))
            return
        reason = self._generation.stats.finish_reason
        if reason is None:
            for event in self._reader.finish():
                self._running.tell(event)
        counts = replace(
            counts_of(self._generation), reasoning_tokens=self._reader.reasoning_tokens
        )
        end_token = self._generation.end_token
        if end_token is not None and end_token.logprob is None:
            end_token = None
        stop = self._reader.stop
        reads = reads_of(self._generation)
        self._running.tell(
            Ended(self._choice, reason or "cancelled", counts, stop, end_token, reads)
        )


def reads_of(generation: Generation) -> tuple[int, ...]:
    """How often each block of its text was chosen; empty where none was."""
    reads = generation.block_reads[: generation.stats.blocks]
    return tuple(reads.tolist()) if reads.any() else ()


def counts_of(generation: Generation) -> Counts:
    """A generation's figures so far."""
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
