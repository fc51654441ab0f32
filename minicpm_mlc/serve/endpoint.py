"""One surface's route: a body in, an answer or a stream out."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.base.explain import explain, is_expected
from minicpm_mlc.base.text import shown
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.runtime_py.collected import Answer
from minicpm_mlc.runtime_py.events import Ended, Failed, Started
from minicpm_mlc.serve.errors import ApiError, api_error
from minicpm_mlc.serve.flow import Flow
from minicpm_mlc.serve.room import LOG, Room
from minicpm_mlc.serve.served import Served
from minicpm_mlc.serve.surface import Ask, Json, Surface, dumps, new_id, refusal

PING_SECONDS = 15.0
LONGEST_NOTE = 200  # characters
Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Endpoint:
    """Answers POST requests of one surface."""

    def __init__(self, surface: Surface, room: Room, served: Served, most_bytes: int) -> None:
        self._surface = surface
        self._room = room
        self._served = served
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        request = Request(scope, receive)
        id = new_id("", 8)
        try:
            body = await read_body(request, self._most_bytes)
            ask = await asyncio.to_thread(self._ask, body)
            if ask.note:
                note = shown(ask.note, LONGEST_NOTE)
                LOG.info("%s %s ignores the fields %s", id, self._surface.name, note)
            client = client_of(request)
            ask = replace(ask, jobs=[replace(job, client=client) for job in ask.jobs])
            await self._answer(id, ask, scope, receive, send)
        except asyncio.CancelledError:  # the server ends, and the grace is over
            LOG.info("%s %s ended with the server", id, self._surface.name)
        except ClientDisconnect:
            LOG.info("%s %s the client left before its request was whole", id, self._surface.name)
        except Exception as error:
            await self._refusal(id, error)(scope, receive, send)

    def _ask(self, body: bytes) -> Ask:
        return self._surface.ask(Fields(parsed(body)), self._served)

    def _refusal(self, id: str, error: Exception) -> Response:
        return refusal(self._surface.errors, self._noted(id, error))

    def _noted(self, id: str, error: BaseException) -> ApiError:
        """The error as the client gets it. What the log gets holds no text of the request."""
        found = api_error(error)
        self._room.metrics.failed(found.kind)
        LOG.info("%s %s refused: %d %s", id, self._surface.name, found.status, found.kind)
        if found.status == 500:
            LOG.error("%s", explain(error))
            if not is_expected(error):
                LOG.error("%s", "".join(traceback.format_tb(error.__traceback__)))
        return found

    async def _answer(self, id: str, ask: Ask, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room.flow(ask) as flow:
            async with watched(receive, flow) as gone:
                timed = Timed(flow)
                if ask.stream:
                    await self._stream(id, ask, timed, send)
                else:
                    await self._whole(ask, timed, gone, scope, receive, send)
                self._log(id, timed)

    async def _whole(
        self,
        ask: Ask,
        timed: Timed,
        gone: asyncio.Task[None],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        async for _ in timed.events():
            pass
        if timed.error:
            raise timed.error
        if not gone.done():
            body = dumps(ask.whole(timed.answer))
            await Response(body, media_type="application/json")(scope, receive, send)

    async def _stream(self, id: str, ask: Ask, timed: Timed, send: Send) -> None:
        headers = {
            "content-type": self._surface.media_type,
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        last = self._surface.done
        try:
            await self._chunks(ask, timed, send)
            if timed.error:
                raise timed.error
        except Exception as error:  # the headers are sent, so it can only be told in the stream
            last = self._surface.error_frame(self._noted(id, error))
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _chunks(self, ask: Ask, timed: Timed, send: Send) -> None:
        renderer = ask.renderer()
        async for events in timed.events():
            chunks = (chunk for event in events for chunk in renderer.feed(event))
            body = b"".join(map(self._surface.frame, chunks)) if events else self._surface.ping
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})

    def _log(self, id: str, timed: Timed) -> None:
        answer, seconds = timed.answer, time.perf_counter() - timed.start
        if timed.error:
            return
        self._room.metrics.answered(answer, timed.first, seconds)
        counts = answer.counts
        LOG.info(
            "%s %s prompt %d (%d cached) in %.3f s, output %d in %.3f s, %.3f s in all, %s",
            id,
            self._surface.name,
            counts.prompt_tokens,
            counts.cached_tokens,
            counts.prompt_seconds,
            counts.completion_tokens,
            counts.decode_seconds,
            seconds,
            ",".join(choice.reason for _, choice in answer.ordered),
        )


class Timed:
    """A flow's events as they come, what they make together, and when the first token came."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.start = time.perf_counter()
        self.first: float | None = None
        self.answer = Answer()
        self.error: BaseException | None = None

    async def events(self) -> AsyncIterator[list[Any]]:
        """Lists of events; an empty one where nothing came for a while."""
        while not self._flow.ended:
            events = await self._flow.next(PING_SECONDS)
            if events and isinstance(last := events[-1], Failed):
                self.error = last.error
                events = events[:-1]
            for event in events:
                if self.first is None and not isinstance(event, Started | Ended):
                    self.first = time.perf_counter() - self.start
                self.answer.feed(event)
            if not self.error or events:
                yield events


@asynccontextmanager
async def watched(receive: Receive, flow: Flow) -> AsyncIterator[asyncio.Task[None]]:
    """Cancels the flow when the client leaves. The task is done once it has."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        flow.cancel()

    task = asyncio.create_task(watch())
    try:
        yield task
    finally:
        task.cancel()


def client_of(request: Request) -> str:
    """Whose request it is: who shows a key is known by it, others by their address."""
    key = request.headers.get("x-api-key") or request.headers.get("authorization")
    return key or (request.client.host if request.client else "")


async def read_body(request: Request, most_bytes: int, any_type: bool = False) -> bytes:
    """The body. Raises ApiError 413 for one that is too large, 415 for one that isn't JSON."""
    kind = request.headers.get("content-type", "application/json").lower()
    if "json" not in kind and not any_type and not request.url.path.startswith("/api/"):
        raise ApiError(415, f"the content type is {kind[:80]}; expected application/json")
    too_large = ApiError(413, f"the body is too large; at most {most_bytes} bytes are read")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > most_bytes:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def parsed(body: bytes) -> Json:
    """JSON of a body. Raises ApiError."""
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        said = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise FieldError(f"the body is not JSON: {said:.200}") from None
