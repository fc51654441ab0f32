"""Who is served now, who waits, and who has to come again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from minicpm_mlc.runtime_py.events import Backend
from minicpm_mlc.serve.errors import ApiError
from minicpm_mlc.serve.flow import Flow
from minicpm_mlc.serve.metrics import Metrics
from minicpm_mlc.serve.surface import Ask

LOG = logging.getLogger("minicpm_mlc.serve")


class Room:
    """A backend's places: `parallel` requests run, `max_waiting` more wait."""

    def __init__(self, backend: Backend, parallel: int, max_waiting: int) -> None:
        self.backend = backend
        self.parallel = parallel
        self.metrics = Metrics()
        self.closing = False
        self._places = parallel + max_waiting
        self._inside = 0

    @property
    def running(self) -> int:
        """Requests that have a place to run."""
        return min(self._inside, self.parallel)

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return self._inside - self.running

    @contextmanager
    def flow(self, ask: Ask) -> Iterator[Flow]:
        """A place, and the request's events; leaving cancels what still runs. Raises ApiError 429
        where all places are taken, 503 while the server shuts down.
        """
        if self.closing:
            raise ApiError(503, "the server is shutting down; ask again when it is back")
        if self._inside >= self._places:
            raise ApiError(
                429, f"{self._inside} requests run or wait, as many as may; ask again in a moment"
            )
        self._inside += 1
        try:
            flow = Flow(self.backend, ask.jobs)
            try:
                yield flow
            finally:
                flow.cancel()
        finally:
            self._inside -= 1
