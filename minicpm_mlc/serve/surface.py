"""What a protocol is to the server: from a body to jobs, from events to what is sent."""

from __future__ import annotations

import json
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response

from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.runtime_py.collected import Answer
from minicpm_mlc.runtime_py.events import Event, Job
from minicpm_mlc.serve.errors import OPENAI, ApiError, ErrorForm
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


def ask_of(
    fields: Fields,
    jobs: Sequence[Job],
    whole: Callable[[Answer], Json],
    renderer: Callable[[], Renderer],
    ignored: Collection[str],
    notes: Sequence[str] = (),
    stream: bool = False,
) -> Ask:
    """The request of a body whose other fields were read. `ignored` are fields that change nothing
    here, `notes` what else goes into the log; `stream`: where the body says nothing.
    """
    given = fields.flag("stream")
    note = ", ".join([*notes, *fields.unread(ignored)])
    return Ask(jobs, stream if given is None else given, whole, renderer, note)


class Surface(ABC):
    """One protocol's way to ask and be answered. As it stands here, its streams are server-sent
    events and its errors OpenAI's.
    """

    name: str
    media_type = "text/event-stream"  # of a stream
    ping = b": ping\n\n"  # sent while nothing comes
    done = b""  # the stream's last bytes
    errors: ErrorForm = OPENAI

    @abstractmethod
    def ask(self, fields: Fields, served: Served) -> Ask:
        """The request of a body. Raises MiniCPMError or ApiError for one that can't be answered."""

    def frame(self, chunk: Json) -> bytes:
        """One object of a stream, as bytes."""
        return server_sent(chunk)

    def error_frame(self, error: ApiError) -> bytes:
        """An error in the middle of a stream."""
        return self.frame(self.errors.body(error))


class NamedEvents(Surface):
    """Streams whose events are named by their type."""

    def frame(self, chunk: Json) -> bytes:
        """One event."""
        return server_sent(chunk, chunk["type"])


def refusal(form: ErrorForm, error: ApiError) -> Response:
    """An error as an answer."""
    body = dumps(form.body(error))
    return Response(body, form.status(error), error.headers, "application/json")


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
