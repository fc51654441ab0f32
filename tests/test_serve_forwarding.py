"""Requests that another process answers: whole there, message by message back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_serving import Slow, applications
from serving import SUM, objects, request

from minicpm_mlc.serve.access import Access, Guard
from minicpm_mlc.serve.errors import ApiError
from minicpm_mlc.serve.forwarding import Forward, Lost, conversation_of, replies

CHAT = "/v1/chat/completions"
MOST = 1 << 20


class Process:
    """Answers by an application; `broken` requests are lost after so many messages."""

    def __init__(self, app: Any, broken: dict[int, int] | None = None) -> None:
        self.app = app
        self.broken = broken or {}
        self.names: list[str] = []

    async def messages(self, scope: Any, body: bytes, conversation: str) -> AsyncIterator[Any]:
        """Those of one request."""
        lost = self.broken.get(len(self.names))
        self.names.append(conversation)
        sent = 0
        async for message in replies(self.app, scope, body):
            if sent == lost:
                raise Lost
            sent += 1
            yield message


def forward(process: Process) -> Forward:
    return Forward(process, MOST)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with applications(tmp_path, monkeypatch) as make:
        yield make


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_comes_as_it_was_sent(serve, stream):
    app = serve()
    body = {"messages": SUM, "max_tokens": 4, "stream": stream}
    here = request(app, "POST", CHAT, body)
    process = Process(app)
    there = request(forward(process), "POST", CHAT, body)
    assert there.status == 200 and there.headers == here.headers | {
        name: there.headers[name] for name in ("content-length",) if name in there.headers
    }
    said = [
        [part["choices"][0] for part in objects(reply.body)] if stream else reply.json["choices"]
        for reply in (here, there)
    ]
    assert said[0] == said[1] and len(process.names) == 1


def test_a_replica_that_is_lost_costs_one_stream(serve):
    app = serve()
    body = {"messages": SUM, "max_tokens": 4, "stream": True}
    process = Process(app, broken={0: 1})
    reply = request(forward(process), "POST", CHAT, body)
    assert reply.status == 200 and b"[DONE]" not in reply.body
    assert objects(reply.body)[-1]["error"]["type"] == "unavailable_error"
    lines = request(forward(Process(app, {0: 1})), "POST", "/api/chat", {"messages": SUM}).body
    assert "lost" in json.loads(lines.splitlines()[-1])["error"]


def test_a_replica_that_is_lost_before_it_answered_costs_nothing(serve):
    process = Process(serve(), broken={0: 0})
    body = {"messages": SUM, "max_tokens": 4}
    assert request(forward(process), "POST", CHAT, body).status == 200
    assert len(process.names) == 2
    process = Process(process.app, broken={0: 0, 1: 0})
    reply = request(forward(process), "POST", "/v1/messages", body)
    assert reply.status == 529 and "ask again" in reply.json["error"]["message"]


def test_who_leaves_ends_the_request_there(serve):
    library = Slow()
    app = serve(library)

    async def leave() -> None:
        while len(library.calls) <= 20:
            await asyncio.sleep(0.005)

    request(forward(Process(app)), "POST", CHAT, {"messages": SUM}, leaves=leave)
    assert 20 < len(library.calls) < 120
    assert request(app, "POST", CHAT, {"messages": SUM, "max_tokens": 2}).status == 200


def test_what_nobody_takes_is_told():
    class Full:
        async def messages(self, scope: Any, body: bytes, conversation: str) -> AsyncIterator[Any]:
            raise ApiError(429, "come again")
            yield

    app = Forward(Full(), MOST)
    assert request(app, "POST", CHAT, {}).status == 429
    assert request(app, "POST", "/api/chat", {}).status == 503
    assert request(app, "POST", CHAT, b"x" * (MOST + 1)).status == 413


def test_an_application_begins_and_ends():
    told = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return told.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    app = Guard(forward(Process(None)), Access())
    asyncio.run(app({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def named(**body: Any) -> str:
    return conversation_of(json.dumps(body).encode())


def test_turns_of_one_conversation_have_one_name():
    system = {"role": "system", "content": "s"}
    first = [system, {"role": "user", "content": "a"}]
    later = [*first, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert named(messages=first) == named(messages=later, temperature=0) != ""
    assert named(messages=first) != named(messages=[system, {"role": "user", "content": "b"}])
    assert named(messages=first[1:]) != named(messages=first[1:], system="s")
    assert named(input="a") == named(input="a", stream=True) != named(input="b")
    assert named(prompt=[1] * 64 + [2]) == named(prompt=[1] * 64 + [3])
    for odd in (b"", b"{", b"[1]", b'{"messages": []}', b'{"messages": 3}', b"\xff"):
        assert conversation_of(odd) == "" or odd == b'{"messages": 3}'
