"""An answer that is read in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, suppress
from typing import Any, cast

from minicpm_mlc.runtime_py.generation import Generation
from minicpm_mlc.runtime_py.scheduler.task import Over, Progress, Task

Submit = Callable[[Generation, Callable[[object], None]], Task]


class Awaited:
    """`await` gives the text, `async for` its pieces, once. It begins then; leaving the loop, or
    cancelling whoever waits, ends it before its next token.
    """

    def __init__(
        self,
        generation: Generation,
        submit: Submit,
        cancel: Callable[[Task], None],
        first: str = "",
    ) -> None:
        """`first` is said before anything is computed."""
        self.stats = generation.stats
        self._generation = generation
        self._submit = submit
        self._cancel = cancel
        self._first = first

    def __await__(self) -> Generator[Any, Any, str]:
        return self._text().__await__()

    async def __aiter__(self) -> AsyncGenerator[str]:
        if self._first:
            yield self._first
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[object] = asyncio.Queue()

        def emit(event: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        task = self._submit(self._generation, emit)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Over):
                    if event.error:
                        raise event.error
                    return
                if not isinstance(event, Progress):
                    yield cast("str", event)
                elif self._generation.request.on_prefill:
                    self._generation.request.on_prefill(*event)
        finally:
            self._cancel(task)

    async def _text(self) -> str:
        async with aclosing(self.__aiter__()) as pieces:
            return "".join([piece async for piece in pieces])
