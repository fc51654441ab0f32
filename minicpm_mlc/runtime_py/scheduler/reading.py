"""A task that is read in the thread that wants it, which also computes while nobody else does."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from minicpm_mlc.runtime_py.generation import Generation
from minicpm_mlc.runtime_py.scheduler.scheduler import Scheduler
from minicpm_mlc.runtime_py.scheduler.task import Over, Progress, Task
from minicpm_mlc.runtime_py.turns import Turns


def read(generation: Generation, scheduler: Scheduler, turns: Turns) -> Generator[object]:
    """What the generation's reader makes of its tokens, as they come. Closing it ends the
    generation. Raises the error that ended it.
    """
    unread: deque[object] = deque()
    task = Task(generation, unread.append)
    scheduler.submit(task)
    try:
        while True:
            turns.until(lambda: bool(unread), scheduler.step)
            event = unread.popleft()
            if isinstance(event, Over):
                if event.error:
                    raise event.error
                return
            if not isinstance(event, Progress):
                yield event
            elif generation.request.on_prefill:
                generation.request.on_prefill(*event)
    finally:
        scheduler.cancel(task)
        turns.now(scheduler.sweep)
