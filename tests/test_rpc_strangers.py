"""rob-07: whatever strangers do, a client that knows the key is served within seconds, and a client
that nobody answers says so.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from test_rpc import KEY, started

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.runtime_py.rpc import connect, server, sockets
from minicpm_mlc.runtime_py.rpc.client import RemoteMachine
from minicpm_mlc.runtime_py.rpc.server import BUSY, MAGIC, MISMATCH, Door

HELLO = struct.pack("<ii", MAGIC, len(f"client:{KEY}")) + f"client:{KEY}".encode()
WRONG = struct.pack("<ii", MAGIC, 9) + b"client:no"


class NobodyServed:
    """In the place of a ClientProcess."""

    busy = False

    def __init__(self) -> None:
        self.served = 0

    def begin(self, connection: socket.socket) -> None:
        self.served += 1


class Doors:
    """A Door on loopback in a thread of its own: `said` are its lines."""

    def __init__(self) -> None:
        self.client = NobodyServed()
        self.said: list[str] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        door = Door(KEY, self.client, self.said.append)  # type: ignore[arg-type]
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(door.welcome(self.listening))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            others = asyncio.all_tasks(self._loop)
            for task in others:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*others, return_exceptions=True))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        self._loop.close()
        self.listening.close()

    def connected(self, source: str = "127.0.0.1") -> socket.socket:
        place = self.listening.getsockname()
        return socket.create_connection(place, timeout=60, source_address=(source, 0))

    def answer(self, hello: bytes) -> tuple[int, float]:
        """The code that a connection is answered with, and the seconds that took."""
        began = time.perf_counter()
        with self.connected() as connection:
            connection.sendall(hello)
            code = connection.recv(4)
        return (struct.unpack("<i", code)[0] if code else 0), time.perf_counter() - began


def test_rob_07_the_address_with_most_silent_connections_loses_one(door: Doors) -> None:
    """Its oldest: a client at another address that is slow to speak stays."""
    with ExitStack() as others:
        other = others.enter_context(door.connected("127.0.0.2"))
        first, *_ = [others.enter_context(door.connected()) for _ in range(server.AT_ONCE + 5)]
        assert gone(first)
        other.sendall(HELLO)
        assert other.recv(4) == struct.pack("<i", MAGIC)


@pytest.fixture
def door() -> Iterator[Doors]:
    with closing(Doors()) as opened:
        yield opened


def soon(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something comes true within some seconds."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


def gone(connection: socket.socket) -> bool:
    """Whether the server has closed a connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def is_met(connection: socket.socket) -> bool:
    """Whether the server still waits for what a connection says."""
    connection.setblocking(False)
    try:
        connection.recv(1)
    except BlockingIOError:
        return True
    return False


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers are met for longer than any test takes, on any machine."""
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 600)


@pytest.mark.usefixtures("patience")
def test_rob_07_a_stranger_who_dribbles_a_key_keeps_nobody_waiting(tmp_path: Path) -> None:
    address, _ = started(tmp_path)
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(struct.pack("<ii", MAGIC, 1000) + b"x")
        assert RemoteMachine(address, KEY).cores >= 1
        assert is_met(stranger)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("count", [6, 3 * server.AT_ONCE])
def test_rob_07_many_silent_strangers_keep_nobody_waiting(door: Doors, count: int) -> None:
    with ExitStack() as strangers:
        first, *_, last = [strangers.enter_context(door.connected()) for _ in range(count)]
        assert door.answer(HELLO)[0] == MAGIC and is_met(last)
        assert soon(lambda: door.client.served == 1)
        if count > server.AT_ONCE:
            assert gone(first)  # the oldest of those that say nothing


def test_rob_07_a_handshake_has_one_time_limit(door: Doors, monkeypatch) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.5)
    with door.connected() as stranger:
        began = time.perf_counter()
        with pytest.raises(ConnectionError):
            for byte in struct.pack("<ii", MAGIC, 1000) + bytes(1000):
                stranger.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.perf_counter() - began < 25  # half of what the bytes take


@pytest.mark.parametrize(
    "hello",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<ii", MAGIC, -1),
        struct.pack("<ii", MAGIC, 0),
        struct.pack("<ii", MAGIC, (1 << 31) - 1),
        struct.pack("<ii", MAGIC + 1, 4) + b"abcd",
        b"",
        HELLO[:-1],
    ],
)
def test_rob_07_nonsense_is_no_session(door: Doors, hello: bytes) -> None:
    with door.connected() as stranger:
        stranger.sendall(hello)
        with suppress(OSError):  # it is closed already
            stranger.shutdown(socket.SHUT_WR)
        assert gone(stranger)
    assert door.answer(HELLO)[0] == MAGIC


def test_rob_27_a_wrong_key_waits_a_second_and_is_told(door: Doors) -> None:
    code, seconds = door.answer(WRONG)
    assert code == MISMATCH and 1 <= seconds < 5
    assert door.said == ["a wrong key from 127.0.0.1"]
    assert not door.client.served


def test_rob_27_wrong_keys_keep_nobody_waiting(door: Doors) -> None:
    """Twice as many as are met at once: the others wait for a second."""
    with ExitStack() as strangers:
        for _ in range(2 * server.AT_ONCE):
            strangers.enter_context(door.connected()).sendall(WRONG)
        code, seconds = door.answer(HELLO)
    assert code == MAGIC and seconds < 6


def test_rob_27_guesses_are_few(door: Doors) -> None:
    """AT_ONCE a second, where 5,600 were answered: a guess isn't cut short by the next one."""
    began = time.perf_counter()
    with ExitStack() as guesses:
        for _ in range(3 * server.AT_ONCE):
            guesses.enter_context(door.connected()).sendall(WRONG)
        assert soon(lambda: len(door.said) == 3 * server.AT_ONCE)
    assert time.perf_counter() - began >= 2 * server.WRONG_KEY_SECONDS


def test_a_client_that_comes_while_one_is_served_is_told(door: Doors, monkeypatch) -> None:
    monkeypatch.setattr(server, "LEAVING_SECONDS", 0.2)
    monkeypatch.setattr(NobodyServed, "busy", True)
    assert door.answer(HELLO)[0] == BUSY
    assert door.answer(WRONG)[0] == MISMATCH  # and a stranger isn't told that


def test_a_reader_of_the_log_that_left_ends_nothing(door: Doors, monkeypatch) -> None:
    def closed(_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Door, "_say", closed, raising=False)
    assert [door.answer(WRONG)[0], door.answer(HELLO)[0]] == [MISMATCH, MAGIC]


def test_rob_07_the_client_says_that_nobody_answers(monkeypatch) -> None:
    monkeypatch.setattr(connect, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 0.6)
    steps: list[tuple[str, int, int]] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"nobody answers at {address} within 0.6 s; is "):
            RemoteMachine(address, KEY, lambda *step: steps.append(step))
    assert steps[0] == (f"no answer yet from {address}", 0, 1)


def test_rob_07_both_sides_notice_that_the_other_machine_is_gone(tmp_path: Path) -> None:
    address, _ = started(tmp_path)
    port = f"{int(address.split(':')[1]):04X}"
    machine = RemoteMachine(address, KEY)

    def kept_alive() -> int:
        """Sides of the connection that have a keepalive timer."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = (f for f in lines if f[3] == "01" and port in (f[1][-4:], f[2][-4:]))
        return sum(fields[5].startswith("02:") for fields in ours)

    assert soon(lambda: kept_alive() == 2)
    assert sockets.SILENT_SECONDS <= 300 and machine.cores


def test_a_clients_process_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    """Else it would hold memory, and its client would be served for ever."""
    program = (
        "from minicpm_mlc.runtime_py.rpc.server import run_server\n"
        f"run_server(port=0, key={KEY!r}, folder={str(tmp_path)!r},"
        " say=lambda line: print(line, flush=True))"
    )
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with killed:
        assert killed.stdout
        machine = RemoteMachine(killed.stdout.readline().split()[2].rstrip(";"), KEY)
        (child,) = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
        os.kill(killed.pid, 9)
    assert soon(lambda: not Path(f"/proc/{child}/cmdline").exists())
    with pytest.raises(EngineError, match=r"failed at hello: .*connect again"):
        machine.call("hello")
