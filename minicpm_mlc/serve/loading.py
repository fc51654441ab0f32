"""The server before its model is there: it listens, and asks everybody to come again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from minicpm_mlc.serve import page_files
from minicpm_mlc.serve.errors import ApiError, form_of
from minicpm_mlc.serve.room import Room
from minicpm_mlc.serve.surface import dumps, refusal

HEALTH = ("/health", "/v1/health")
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}


class Entrance:
    """An ASGI application that has nothing behind it until it is opened: status 503 for all but the
    page's files.
    """

    def __init__(self) -> None:
        self._app: Any = None
        self._room: Room | None = None
        self._closing = False

    def open(self, app: Any, room: Room) -> None:
        """From now on it is this application that answers, unless the end came before."""
        room.closing = self._closing
        self._app, self._room = app, room

    def close(self) -> None:
        """Nobody new is taken."""
        self._closing = True
        if self._room:
            self._room.closing = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        app = self._app or await _not_yet(Request(scope))
        await app(scope, receive, send)


async def _not_yet(request: Request) -> Response:
    path = request.url.path
    if path in HEALTH:
        return Response(dumps(LOADING), 503, {"Retry-After": "1"}, "application/json")
    if path in page_files.PUBLIC:
        return await page_files.answer(request)
    return refusal(form_of(path), ApiError(503, "Loading model"))


class Opening:
    """Opens something in a thread of its own. Whoever leaves the context waits for that, and
    closes what was opened.
    """

    def __init__(self, open_all: Callable[[ExitStack], None], failed: Callable[[], None]) -> None:
        """`open_all` enters on the stack what is to be closed in the end; `failed` is called, in
        that thread, where it raises.
        """
        self._open_all = open_all
        self._failed = failed
        self._opened = ExitStack()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loading")

    def __enter__(self) -> Opening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        with self._opened:
            if self._error:
                raise self._error

    def _run(self) -> None:
        try:
            self._open_all(self._opened)
        except BaseException as error:  # told by whoever leaves the context
            self._error = error
            self._failed()
