"""One request's events, brought from the backend's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from minicpm_mlc.runtime_py.events import Backend, Ended, Event, Failed, Job, Running


class Flow:
    """The events of several jobs as if they were one: choices are numbered over all of them.

    Made on the event loop, whose methods these are.
    """

    def __init__(self, backend: Backend, jobs: Sequence[Job]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._awaited: asyncio.Future[None] | None = None
        self._left = sum(job.n for job in jobs)
        self._running: list[Running] = []
        first = 0
        try:
            for job in jobs:
                self._running.append(backend.submit(job, _Emitter(self, first)))
                first += job.n
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Ends all jobs soon; the events that they still have come."""
        for running in self._running:
            running.cancel()

    async def next(self, seconds: float) -> list[Event]:
        """The events that have come, at least one; none where that took too long, or there are no
        more. An error that ended a job ends the others too, and is the last event.
        """
        if self.ended:
            return []
        if not self._events:
            await self._arrival(seconds)
        events, self._events = self._events, []
        return self._counted(events)

    async def _arrival(self, seconds: float) -> None:
        """Until an event has come, or that long. Lighter than wait_for, which makes a task."""
        self._awaited = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, self._awaited)
        try:
            await self._awaited
        finally:
            timer.cancel()

    @property
    def ended(self) -> bool:
        """Whether all events have been given."""
        return self._left <= 0

    def _counted(self, events: list[Event]) -> list[Event]:
        for at, event in enumerate(events):
            self._left -= isinstance(event, Ended)
            if isinstance(event, Failed):
                self._left = 0
                self.cancel()
                return events[: at + 1]
        return events

    def put(self, event: Event) -> None:
        """From any thread. What comes after the loop's end is dropped."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived, event)

    def _arrived(self, event: Event) -> None:
        self._events.append(event)
        if self._awaited:
            _wake(self._awaited)


def _wake(awaited: asyncio.Future[None]) -> None:
    if not awaited.done():
        awaited.set_result(None)


class _Emitter:
    """Takes one job's events; its choice 0 is the request's choice `first`."""

    def __init__(self, flow: Flow, first: int) -> None:
        self._flow = flow
        self._first = first

    def __call__(self, event: Event) -> None:
        if self._first and not isinstance(event, Failed):
            event = replace(event, choice=event.choice + self._first)
        self._flow.put(event)
