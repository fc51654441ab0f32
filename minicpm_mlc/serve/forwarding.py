"""One request answered by an application in another process: it goes there whole, and the messages
of the answer come back one by one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request

from minicpm_mlc.serve.endpoint import read_body
from minicpm_mlc.serve.errors import ApiError, api_error, form_of
from minicpm_mlc.serve.surface import dumps, refusal, server_sent

LOST = "the replica that answered was lost; ask again"
# of a request's scope, what the other process needs
SCOPE = ("type", "http_version", "method", "path", "raw_path", "query_string", "root_path")
Scope = dict[str, Any]
Message = dict[str, Any]


class Lost(Exception):
    """The other process is gone."""


class Replicas(Protocol):
    """Whoever answers."""

    def messages(self, scope: Scope, body: bytes, conversation: str) -> AsyncIterator[Message]:
        """The ASGI messages of an answer. Closing it cancels the request there. Raises Lost, and
        ApiError where nobody takes it.
        """
        ...


class Forward:
    """An ASGI application that hands requests on. One whose replica is lost before it said anything
    goes to another one.
    """

    def __init__(self, replicas: Replicas, most_bytes: int) -> None:
        self._replicas = replicas
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request, or the application's own life, with which nothing begins or ends."""
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        started: list[str] = []  # the content type, once headers were sent

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message.get("headers", []))
                started.append(headers.get(b"content-type", b"").decode("latin-1"))
            await send(message)

        request = Request(scope, receive)
        try:
            body = await read_body(request, self._most_bytes, any_type=True)
            try:
                await self._answer(scope, body, receive, sending)
            except Lost:
                if started:
                    raise
                await self._answer(scope, body, receive, sending)
        except ClientDisconnect:
            return
        except Exception as error:
            found = ApiError(503, LOST) if isinstance(error, Lost) else api_error(error)
            form = form_of(scope["path"])
            if not started:
                await refusal(form, found)(scope, receive, send)
                return
            last = _told(started[0], form.body(found))
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _answer(self, scope: Scope, body: bytes, receive: Any, send: Any) -> None:
        plain = {name: scope[name] for name in SCOPE if name in scope}
        plain["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        plain["client"] = tuple(scope.get("client") or ("", 0))
        found = self._replicas.messages(plain, body, conversation_of(body))

        async def pass_on() -> None:
            async with aclosing(found) as messages:  # type: ignore[type-var]
                async for message in messages:
                    await send(message)

        answering = asyncio.ensure_future(pass_on())
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)


async def replies(app: Any, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """The messages of an application's answer. Closing the iterator tells it that the client left,
    and waits until it has ended.
    """
    queue: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def answer() -> None:
        try:
            await app(scope, receive, queue.put)
        finally:
            queue.put_nowait(None)

    answering = asyncio.ensure_future(answer())
    try:
        while (message := await queue.get()) is not None:
            yield message
    finally:
        gone.set()
        await asyncio.shield(answering)


def conversation_of(body: bytes) -> str:
    """A name for what a request begins with: all turns of a conversation have the same one. Empty
    for a body that has no prompt.
    """
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, Mapping):
        return ""
    said = fields.get("messages") or fields.get("input") or fields.get("prompt")
    if not said:
        return ""
    beginning = [fields.get("system"), fields.get("instructions"), _first(said)]
    return hashlib.sha256(json.dumps(beginning).encode()).hexdigest()[:16]


def _first(said: object) -> object:
    """What comes up to the first user's message; of a prompt the first tokens or characters."""
    if isinstance(said, str):
        return said[:256]
    if not isinstance(said, list):
        return None
    for at, message in enumerate(said):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return said[: at + 1]
    return said[:64]


async def _live(receive: Any, send: Any) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _told(media_type: str, error: Mapping[str, Any]) -> bytes:
    """An error as the last thing of a stream."""
    if "event-stream" in media_type:
        return server_sent(error, error.get("type"))
    return (dumps(error) + "\n").encode() if "ndjson" in media_type else b""
