"""minicpm-mlc rpc-server: serves clients that know the key, one at a time, each in a process of its
own.

The handshake is TVM's: a magic number, the length of a key, "client:KEY"; the answer is a code, and
the server's name.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.runtime_py.rpc.message import LAST_PORT

MAGIC = 0xFF271  # TVM's, src/runtime/rpc/rpc_endpoint.h
BUSY, MISMATCH = MAGIC + 1, MAGIC + 2  # the first is TVM's word for a key that is taken
LONGEST_KEY = 1024
HANDSHAKE_SECONDS = 10
LEAVING_SECONDS = 3  # that a client's process may take to end, before the next one is sent away


def run_server(
    host: str = "127.0.0.1",
    port: int = 9090,
    key: str | None = None,
    folder: str | Path | None = None,
    say: Callable[[str], None] = print,
    clients: int | None = None,
) -> None:
    """Serve clients for ever, or so many. `key` None: a random one, which is said. Bundles are kept
    in `folder`.

    Another client is told that the server is busy. Raises EngineError when the address can't be
    had.
    """
    if not 0 <= port <= LAST_PORT:
        raise EngineError(f"--port {port}: expected 0 to {LAST_PORT}, such as --port 9090")
    key = key or secrets.token_urlsafe(12)
    place = Path(folder) if folder else _cache()
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise EngineError(
            f"{host}:{port} can't be listened at ({error.strerror}); try another --port"
        ) from None
    client = ClientProcess(place)
    with listening, client:
        address = "{}:{}".format(*listening.getsockname()[:2])
        say(
            f"listening at {address}; a client: minicpm-mlc chat BUNDLE --rpc {address} --key {key}"
        )
        while clients is None or clients > 0:
            connection, peer = listening.accept()
            with connection:
                if _greeted(connection, key, client):
                    say(f"serving {peer[0]}:{peer[1]}")
                    client.begin(connection)
                    clients = clients and clients - 1
        client.wait()


class ClientProcess:
    """The process that serves the present client, so that a crash ends that process alone. It is
    killed when the server ends.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: where bundles are kept."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()

    def begin(self, connection: socket.socket) -> None:
        """Serve a client until it leaves; returns at once."""
        # so that a client whose network broke leaves at last
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        arguments = [str(connection.fileno()), str(self._folder)]
        command = [sys.executable, "-m", "minicpm_mlc.runtime_py.rpc.client_handler", *arguments]
        self._process = subprocess.Popen(command, pass_fds=[connection.fileno()])

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the client has left, within so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            return self._process is None or self._process.wait(seconds) is not None
        return False


def _greeted(connection: socket.socket, key: str, before: ClientProcess) -> bool:
    """Whether the client knows the key and the one before it has left; it is told."""
    connection.settimeout(HANDSHAKE_SECONDS)
    with suppress(OSError, struct.error, UnicodeDecodeError):
        magic, length = struct.unpack("<ii", _received(connection, 8))
        if magic != MAGIC or not 0 < length <= LONGEST_KEY:
            return False
        given = _received(connection, length)
        right = hmac.compare_digest(given, f"client:{key}".encode())
        answer = MISMATCH if not right else MAGIC if before.wait(LEAVING_SECONDS) else BUSY
        connection.sendall(struct.pack("<i", answer))
        if answer == MAGIC:
            name = b"server:minicpm-mlc"
            connection.sendall(struct.pack("<i", len(name)) + name)
            connection.settimeout(None)
        return answer == MAGIC
    return False


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = connection.recv(size - len(data))
        if not block:
            raise OSError("the client left")
        data += block
    return data


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicpm-mlc" / "rpc"
