"""What a protocol is to the server: from a body to jobs, from events to what is sent."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minicpm_mlc.runtime_py.collected import Answer
from minicpm_mlc.runtime_py.events import Event, Job
from minicpm_mlc.serve.errors import ApiError
from minicpm_mlc.serve.fields import Fields
from minicpm_mlc.serve.served import Served

Json = Mapping[str, Any]
ALPHABET = string.ascii_letters + string.digits


class Renderer(Protocol):
    """Turns one request's events into the objects of its stream, a pure function of them."""

    def feed(self, event: Event) -> Iterable[Json]:
        """The objects that this event makes. The job's last one closes the stream."""
        ...


@dataclass(frozen=True)
class Ask:
    """One request, read from its body.

    `whole` makes the answer of all events, `renderer` a stream's objects; `note` is what the log
    should know.
    """

    jobs: Sequence[Job]
    stream: bool
    whole: Callable[[Answer], Json]
    renderer: Callable[[], Renderer]
    note: str = ""


class Surface(Protocol):
    """One protocol's way to ask and be answered."""

    name: str
    media_type: str  # of a stream
    ping: bytes  # sent while nothing comes
    done: bytes  # the stream's last bytes
    statuses: Mapping[int, int]  # of errors, where the protocol has another number

    def ask(self, fields: Fields, served: Served) -> Ask:
        """The request of a body. Raises ApiError or MiniCPMError for one that can't be answered."""
        ...

    def frame(self, chunk: Json) -> bytes:
        """One object of a stream, as bytes."""
        ...

    def error(self, error: ApiError) -> Json:
        """The body of an error."""
        ...

    def error_frame(self, error: ApiError) -> bytes:
        """An error in the middle of a stream."""
        ...


def dumps(value: object) -> str:
    """JSON as it is sent: on one line, UTF-8 unescaped; lone surrogates as U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()


def new_id(prefix: str, length: int = 24) -> str:
    """A random name, as these APIs give to all that they make."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(length))


def server_sent(chunk: Json, event: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {dumps(chunk)}\n\n".encode()
