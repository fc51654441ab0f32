"""`minicpm-mlc serve` from its first moment to its last: before the model is there, and while the
server ends.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_library import manifest, use_fake_library
from fake_serving import SIZES, applications, write_model
from serving import SUM, request

from minicpm_mlc.base.errors import BundleError, EngineError
from minicpm_mlc.serve import listening, opening
from minicpm_mlc.serve.access import Access, Guard
from minicpm_mlc.serve.listening import bound
from minicpm_mlc.serve.loading import Entrance
from minicpm_mlc.serve.options import Serving
from minicpm_mlc.serve.server import serve

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "path, status, error",
    [
        ("/health", 503, {"code": 503, "message": "Loading model", "type": "unavailable_error"}),
        (CHAT, 503, {"message": "Loading model", "type": "unavailable_error", "param": None}),
        ("/v1/messages", 529, {"type": "overloaded_error", "message": "Loading model"}),
        ("/api/chat", 503, "Loading model"),
    ],
)
def test_before_the_model_is_there_all_protocols_say_so(path, status, error):
    reply = request(Guard(Entrance(), Access()), "POST", path, {"messages": SUM})
    found = reply.json["error"]
    assert reply.status == status and reply.headers["retry-after"] == "1"
    assert found == error or {key: found[key] for key in error} == error


def test_a_browser_gets_the_page_before_the_model_is_there():
    app = Guard(Entrance(), Access())
    page = request(app, "GET", "/", headers={"accept": "text/html"})
    assert page.status == 200 and b"page.js" in page.body
    assert request(app, "GET", "/page/page.js").status == 200
    assert request(app, "GET", "/", headers={"host": "evil.example"}).status == 403


def test_what_ends_takes_nobody_new(tmp_path, monkeypatch):
    entrance = Entrance()
    with applications(tmp_path, monkeypatch) as make:
        app = make()
        room = app._app.routes[0].endpoint.__self__._room
        entrance.open(app, room)
        assert request(entrance, "GET", "/health").json == {"status": "ok"}
        entrance.close()
        for path, status in ((CHAT, 503), ("/v1/messages", 529), ("/api/chat", 503)):
            assert request(entrance, "POST", path, {"messages": SUM}).status == status
        health = request(entrance, "GET", "/health")
        assert health.status == 503 and "Shutting down" in health.json["error"]["message"]


class Visitor(threading.Thread):
    """Asks for the server's health until it is well, then for an answer, then ends the server."""

    def __init__(self, port: int, told: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.told = told  # is called after each answer
        self.statuses: list[int] = []
        self.answer: Any = None

    def run(self) -> None:
        """What it does."""
        try:
            while self.statuses[-1:] != [200]:
                self.statuses.append(self._ask("GET", "/health")[0])
                self.told()
                time.sleep(0.01)
            body = json.dumps({"messages": SUM, "max_tokens": 2})
            self.answer = self._ask("POST", CHAT, body)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {"content-type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()


def test_who_asks_while_the_model_is_loaded_is_told(tmp_path: Path, monkeypatch):
    write_model(tmp_path, monkeypatch)
    use_fake_library(monkeypatch, model=manifest().model | SIZES)
    asked = threading.Event()
    opened = opening._engine

    def slowly(*arguments: Any, **options: Any) -> Any:
        asked.wait(60)
        return opened(*arguments, **options)

    monkeypatch.setattr(opening, "_engine", slowly)
    monkeypatch.setattr(opening, "check_device", lambda engine: None)
    listener = bound("127.0.0.1", 0)
    monkeypatch.setattr(listening, "bound", lambda host, port: listener)
    visitor = Visitor(listener.getsockname()[1], asked.set)
    visitor.start()
    said: list[str] = []
    serve(str(tmp_path), Serving(), said.append)
    visitor.join(60)
    assert visitor.statuses[0] == 503 and visitor.statuses[-1] == 200
    assert set(visitor.statuses) == {503, 200}
    assert visitor.answer[0] == 200 and len(said) == 1 and "http://127.0.0.1" in said[0]


def test_a_bundle_that_does_not_open_ends_the_server(tmp_path: Path):
    with pytest.raises(BundleError):
        serve(str(tmp_path / "none"), Serving(port=0), print)


def test_a_port_that_is_taken_is_told_before_the_bundle_is_opened(tmp_path: Path):
    with bound("127.0.0.1", 0) as taken, pytest.raises(EngineError, match="--port"):
        serve(str(tmp_path / "none"), Serving(port=taken.getsockname()[1]), print)
