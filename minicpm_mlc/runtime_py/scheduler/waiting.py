"""The tasks that wait, thousands of them where many ask at once."""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Iterator, Mapping

from minicpm_mlc.runtime_py.scheduler.task import Task


class Waiting:
    """Those of each client in the order of their arrival. Any thread may add one."""

    def __init__(self) -> None:
        self._of: dict[str, list[Task]] = {}  # no list is empty
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Task]:
        with self._lock:
            return iter([task for tasks in self._of.values() for task in tasks])

    def __contains__(self, task: Task) -> bool:
        with self._lock:
            return task in self._of.get(task.client, ())

    def add(self, task: Task) -> None:
        """It waits."""
        with self._lock:
            insort(self._of.setdefault(task.client, []), task, key=lambda each: each.arrival)

    def remove(self, task: Task) -> None:
        """It waits no more."""
        with self._lock:
            tasks = self._of[task.client]
            tasks.remove(task)
            if not tasks:
                del self._of[task.client]

    def next(self, running: Mapping[str, int]) -> Task | None:
        """Of the clients with the fewest tasks running, the task that came first."""
        with self._lock:
            firsts = [tasks[0] for tasks in self._of.values()]
        return min(firsts, key=lambda task: (running[task.client], task.arrival), default=None)
