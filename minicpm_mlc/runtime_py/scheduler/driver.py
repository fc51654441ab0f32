"""A thread that computes while there are tasks that go on by themselves."""

from __future__ import annotations

import threading

from minicpm_mlc.runtime_py.scheduler.scheduler import Scheduler
from minicpm_mlc.runtime_py.turns import Turns


class Driver:
    """Begins its thread with the first such task, and ends it with the last."""

    def __init__(self, scheduler: Scheduler, turns: Turns) -> None:
        self._scheduler = scheduler
        self._turns = turns
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """A task was submitted."""
        with self._turns.changed:
            if self._thread is None or not self._thread.is_alive():  # none is, in a forked process
                self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._turns.until(lambda: not self._scheduler.driven, self._scheduler.step)
            except Exception as error:  # a mistake of ours: nobody waits for ever
                self._turns.now(lambda error=error: self._scheduler.close(error))
            with self._turns.changed:
                if not self._scheduler.driven:
                    self._thread = None
                    return
