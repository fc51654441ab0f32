"""Which requests run, and what the next step computes: a chunk of one prompt, and a token of every
answer that has begun.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from minicpm_mlc.base.errors import ContextError, EngineError
from minicpm_mlc.runtime_py.cached_model import decode_together
from minicpm_mlc.runtime_py.generation import Generation
from minicpm_mlc.runtime_py.kv_cache import PagePool
from minicpm_mlc.runtime_py.scheduler.chunks import Chunks
from minicpm_mlc.runtime_py.scheduler.task import Progress, Task
from minicpm_mlc.runtime_py.scheduler.waiting import Waiting
from minicpm_mlc.runtime_py.slots import Slot, Slots
from minicpm_mlc.runtime_py.spent import spent_in
from minicpm_mlc.runtime_py.turns import Turns


class Scheduler:
    """Runs up to `parallel` tasks at once on the pages of one engine.

    First come, first served; between clients, who has fewest running. One prompt is computed at a
    time, in chunks, and between two of them every answer that has begun gets its next token: those
    of one gear in one call, one alone with speculation.

    A task begins when there are pages for its prompt. Where an answer needs a page and none is
    left, the task that came last gives its own back and waits; later it goes on with the token that
    it had come to. One that doesn't fit though nothing else runs is refused.
    """

    def __init__(self, slots: Slots, pool: PagePool, parallel: int, turns: Turns) -> None:
        self.parallel = parallel
        self.slots = slots
        self._pool = pool
        self._turns = turns
        self._chunks = Chunks(pool.page_size)
        self._waiting = Waiting()
        self._reading: Task | None = None  # whose prompt is being computed
        self._running: list[Task] = []
        self._full = False  # the next task has to wait for pages
        self._cancelled = False  # a task was

    @property
    def running(self) -> list[Task]:
        """The tasks whose prompt is computed."""
        return list(self._running)

    @property
    def placed(self) -> list[Task]:
        """The tasks that have a sequence."""
        return [*self._running, self._reading] if self._reading else list(self._running)

    @property
    def tasks(self) -> list[Task]:
        """All that are not over: those that run, then those that wait."""
        return [*self.placed, *self._waiting]

    @property
    def driven(self) -> bool:
        """Whether a task is there that goes on by itself."""
        return any(task.driven for task in chain(self.placed, self._waiting))

    def submit(self, task: Task) -> None:
        """Takes a task; the next step may begin it."""
        with self._turns.changed:
            self._waiting.add(task)
            self._turns.changed.notify_all()

    def cancel(self, task: Task) -> None:
        """Ends a task before the next step."""
        if not task.over:
            task.cancelled = self._cancelled = True

    def step(self) -> None:
        """Computes one token of every answer that has begun, and one chunk of a prompt."""
        self.sweep()
        self._admit()
        self._decode()
        self._prefill()

    def sweep(self) -> None:
        """Ends the tasks that were cancelled."""
        if not self._cancelled:
            return
        self._cancelled = False
        for task in self.tasks:
            if task.cancelled:
                self._leave(task)

    def release(self, slot: Slot, error: EngineError) -> None:
        """Ends the task that runs on a slot, if one does."""
        for task in self.placed:
            if task.slot is slot:
                self._leave(task, error)

    def close(self, error: Exception) -> None:
        """Ends all tasks."""
        for task in self.tasks:
            self._leave(task, error)

    def _admit(self) -> None:
        if self._reading or self._full or len(self._running) >= self.parallel:
            return
        if task := self._waiting.next(Counter(task.client for task in self._running)):
            with self._failing(task):
                self._begin(task)

    def _begin(self, task: Task) -> None:
        slot = self.slots.take()
        try:
            self.slots.place(slot, task.generation.reusable)
            sequence = slot.model.sequence
            # with the first token, which needs no room in a full context
            missing = min(len(task.generation) + 1, sequence.context) - len(sequence)
            # each of the others may need a page soon
            room = sequence.room - len(self._running) * self._pool.page_size
            if missing > room and self._running:
                self._full = True
                return
            if missing > sequence.room:
                raise _too_large(len(task.generation), self._pool)
            task.generation.place(slot)
            task.slot = slot
        finally:
            if task.slot is None:
                self.slots.give_back(slot)
        self._waiting.remove(task)
        self._reading = task

    def _prefill(self) -> None:
        task = self._reading
        if task is None:
            return
        generation = task.generation
        with self._failing(task):
            if generation.missing and not self._read(task):
                return
            if not generation.missing:
                self._reading = None
                self._running.append(task)
                if generation.fresh:
                    self._draw(task)

    def _read(self, task: Task) -> bool:
        """Computes a chunk of what a task lacks, if there is room for it."""
        generation = task.generation
        most = min(generation.missing, generation.limits.prefill_chunk)
        tokens = min(most, self._bound(generation))
        if not self._make_room(task, tokens):
            return False
        start = time.perf_counter()
        generation.prefill(tokens)
        self._chunks.took(tokens, time.perf_counter() - start)
        if task.slot:
            self.slots.keep(task.slot)
        if generation.fresh:
            task.emit(Progress(*generation.progress))
        return True

    def _bound(self, generation: Generation) -> int:
        """Tokens that a chunk may have."""
        if self._running:
            return self._chunks.most
        watched = generation.request.on_prefill is not None
        return self._chunks.watched if watched else generation.limits.prefill_chunk

    def _decode(self) -> None:
        alone = len(self._running) == 1
        joint: list[Task] = []
        for task in list(self._running):
            with self._failing(task):
                if task.slot is None:  # it made room for one before it
                    continue
                if task.generation.follow():
                    self._draw(task)
                elif self._make_room(task, 1):
                    joint.append(task)
        if alone and joint:
            with self._failing(joint[0]):
                joint[0].generation.decode()
                self._draw(joint[0])
            return
        rows: dict[bool, list[Task]] = {False: [], True: []}  # by gear
        for task in joint:
            if task.slot:
                rows[task.generation.sparse].append(task)
        for tasks in filter(None, rows.values()):
            self._decode_rows(tasks)

    def _decode_rows(self, tasks: list[Task]) -> None:
        """One token of each of these, in one call."""
        generations = [task.generation for task in tasks]
        calls = spent_in(generations[0].model.cache.library)
        before, start = calls.copy(), time.perf_counter()
        try:
            logits = decode_together(
                [one.model for one in generations], [one.pending for one in generations]
            )
        except Exception as error:
            for task in tasks:
                self._leave(task, error)
            return
        seconds, spent = time.perf_counter() - start, calls.since(before)
        for task, row in zip(tasks, logits, strict=True):
            with self._failing(task):
                task.generation.decoded(row, seconds, spent)
                self._draw(task)

    def _draw(self, task: Task) -> None:
        for event in task.generation.draw():
            task.emit(event)
        if task.generation.ended:
            self._leave(task)

    def _make_room(self, task: Task, tokens: int) -> bool:
        """Whether it has pages for so many more tokens; the task that came last makes room."""
        while task.slot and task.slot.model.sequence.room < tokens:
            if self.slots.spare():
                continue
            others = [each for each in self.placed if each is not task]
            if not others:
                raise _too_large(len(task.slot.model) + tokens, self._pool)
            self._rest(max([*others, task], key=lambda each: each.arrival))
        if task.slot is None:
            return False
        task.slot.model.sequence.reserve(tokens)  # no other task of this step counts on them
        return True

    def _rest(self, task: Task) -> None:
        """It gives its pages back and waits."""
        self._stop(task)
        self._waiting.add(task)

    def _leave(self, task: Task, error: BaseException | None = None) -> None:
        if task in self._waiting:
            self._waiting.remove(task)
        try:
            self._stop(task)
        except Exception as failed:
            error = error or failed
        task.end(error)

    def _stop(self, task: Task) -> None:
        """It runs no more."""
        slot = task.slot
        if slot is None:
            return
        task.slot = None
        self._full = False
        if self._reading is task:
            self._reading = None
        if task in self._running:
            self._running.remove(task)
        try:
            task.generation.close()
        finally:
            self.slots.give_back(slot)

    @contextmanager
    def _failing(self, task: Task) -> Iterator[None]:
        """An error within is the task's end."""
        try:
            yield
        except Exception as error:
            self._leave(task, error)


def _too_large(tokens: int, pool: PagePool) -> ContextError:
    held = pool.available * pool.page_size
    return ContextError(
        f"{tokens} tokens don't fit the cache: {held} of its {len(pool.owners) * pool.page_size} "
        "tokens are free; free other sequences, or open the engine with a larger context"
    )
