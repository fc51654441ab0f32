"""The socket that a server listens at, and the loop that answers there until a signal ends it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from minicpm_mlc.base.errors import EngineError

BACKLOG = 1024


class Server(uvicorn.Server):
    """Says that the end comes before requests are asked to finish, and leaves with status 0 where
    uvicorn would be killed by the signal that it has answered.
    """

    def __init__(self, app: Any, grace: float, closing: Callable[[], None]) -> None:
        """`grace`: seconds that requests have to end in."""
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=max(1, round(grace)),
            )
        )
        self._closing = closing

    def end(self) -> None:
        """Has `run` return soon. From any thread."""
        self._closing()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        self._closing()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it answers, SIGINT and SIGTERM end it."""
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one. Raises EngineError."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # who connects before the application is up, waits
        return listener
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise EngineError(
            f"{host}:{port} can't be listened at ({said}); give another --port, 0 for any free one"
        ) from None


def url_of(listener: socket.socket) -> str:
    """Where clients find it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
