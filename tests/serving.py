"""What the tests of serve share: answers written as tokens, events without a model, requests to an
application without a socket, and a real server.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from minicpm_mlc.runtime_py.events import Counts, Ended, Event, Scored, Started

DEMO = "MiniCPM4.1-demo"
SUM = [{"role": "user", "content": "What is 4827 + 356?"}]


class Pieces:
    """A tokenizer whose token i is the i-th piece of a text, in bytes."""

    hidden: Mapping[int, str] = {}
    strips_first_space = False

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]


def splits(text: str) -> Iterator[list[bytes]]:
    """A text as two tokens, cut at every byte, and as one token a byte."""
    whole = text.encode()
    for at in range(len(whole) + 1):
        yield [whole[:at], whole[at:]]
    yield [whole[i : i + 1] for i in range(len(whole))]


def read(make: Callable[[Any], Any], pieces: Sequence[bytes], scored: bool = False) -> list[Event]:
    """The events that a reader makes of the pieces, as a backend asks it."""
    reader = make(Pieces(pieces))
    events: list[Event] = []
    for i in range(len(pieces)):
        events += reader.feed(Scored(i, -0.5 if scored else None))
        if reader.stop is not None:
            break
    return [*events, *reader.finish()]


def answer(*events: Event, reason: str = "stop", stop: str | None = None) -> list[Event]:
    """A whole answer of one choice: its start, these events, its end."""
    counts = Counts(9, 4, 12, 7, 0.5, 2.0)
    return [Started(9, 4), *events, Ended(0, reason, counts, stop)]


def model(**changes: Any) -> Any:
    """What a surface needs of Served to show an answer."""
    facts = {
        "name": "m",
        "token_text": lambda token: f"<{getattr(token, 'token_id', token)}>",
        "token_bytes": lambda token: f"<{getattr(token, 'token_id', token)}>".encode(),
    }
    return SimpleNamespace(**(facts | changes))


class Reply:
    """What an application sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def take(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message.get("headers", [])}
        else:
            self.body += message.get("body", b"")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    app: Any,
    method: str,
    path: str,
    body: Any = b"",
    headers: Mapping[str, str] | None = None,
    leaves: Callable[[], Any] | None = None,
) -> Reply:
    """One request to an ASGI application. `leaves` makes an awaitable: the client is gone once
    that is done.
    """
    return asyncio.run(asked(app, method, path, body, headers, leaves))


async def asked(
    app: Any,
    method: str,
    path: str,
    body: Any = b"",
    headers: Mapping[str, str] | None = None,
    leaves: Callable[[], Any] | None = None,
) -> Reply:
    """The same on a running loop."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"host": "localhost:8000", "content-type": "application/json"} | dict(headers or {})
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    reply = Reply()
    sent = False

    async def receive() -> Any:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": raw, "more_body": False}
        if leaves is None:
            await asyncio.Event().wait()
        else:
            await leaves()
        return {"type": "http.disconnect"}

    await app(scope, receive, reply.take)
    return reply


def objects(body: bytes) -> list[Any]:
    """The JSON objects of a stream of server-sent events, [DONE] left out."""
    lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def joined(events: Iterable[Event], kind: type) -> str:
    """The texts of all events of a kind, one after the other."""
    return "".join(event.text for event in events if isinstance(event, kind))  # type: ignore[attr-defined]


class Address(str):
    """A server's address, and its process."""

    pid: int


@contextmanager
def server(bundle: Path, *options: str) -> Iterator[Address]:
    """`minicpm-mlc serve` in a process of its own, and its address."""
    command = [sys.executable, "-m", "minicpm_mlc", "serve", str(bundle), "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:  # a pipe that nobody reads would hold it up
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert "http://" in line, line + _all_of(log)
            address = Address("http://" + line.split("http://")[1].split()[0])
            address.pid = process.pid
            with urllib.request.urlopen(f"{address}/health", timeout=120) as reply:
                assert json.load(reply) == {"status": "ok"}
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
            process.stdout.close()
        said = _all_of(log)
        assert process.returncode == 0 and "Traceback" not in said, said


def _all_of(log: TextIO) -> str:
    log.seek(0)
    return log.read()
