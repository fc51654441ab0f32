"""minicpm-mlc rpc-server: waits for clients that know the key, one after the other, each in a process of its own.

The handshake is TVM's: a magic number, the length of a key, "client:KEY"; the answer is a code, and the server's name.
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

from ...errors import EngineError

MAGIC, MISMATCH = 0xFF271, 0xFF271 + 2  # TVM's, src/runtime/rpc/rpc_endpoint.h
LONGEST_KEY = 1024
HANDSHAKE_SECONDS = 10


def run_server(
    host: str = "127.0.0.1",
    port: int = 9090,
    key: str | None = None,
    folder: str | Path | None = None,
    say: Callable[[str], None] = print,
    clients: int | None = None,
) -> None:
    """Serve clients for ever, or so many. `key` None: a random one, which is said. Bundles are kept in `folder`.

    Raises EngineError when the address can't be had.
    """
    key = key or secrets.token_urlsafe(12)
    place = Path(folder) if folder else _cache()
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise EngineError(f"{host}:{port} can't be listened at ({error.strerror}); try another --port") from None
    with listening:
        address = "{}:{}".format(*listening.getsockname()[:2])
        say(f"listening at {address}; a client: minicpm-mlc chat BUNDLE --rpc {address} --key {key}")
        while clients is None or clients > 0:
            connection, peer = listening.accept()
            with connection:
                if _greeted(connection, key):
                    say(f"serving {peer[0]}:{peer[1]}")
                    _serve(connection, place)
                    clients = clients and clients - 1


def _greeted(connection: socket.socket, key: str) -> bool:
    """Whether the client knows the key; it is told."""
    connection.settimeout(HANDSHAKE_SECONDS)
    with suppress(OSError, struct.error, UnicodeDecodeError):
        magic, length = struct.unpack("<ii", _received(connection, 8))
        if magic != MAGIC or not 0 < length <= LONGEST_KEY:
            return False
        given = _received(connection, length)
        right = hmac.compare_digest(given, f"client:{key}".encode())
        connection.sendall(struct.pack("<i", MAGIC if right else MISMATCH))
        if right:
            name = b"server:minicpm-mlc"
            connection.sendall(struct.pack("<i", len(name)) + name)
            connection.settimeout(None)
        return right
    return False


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = connection.recv(size - len(data))
        if not block:
            raise OSError("the client left")
        data += block
    return data


def _serve(connection: socket.socket, folder: Path) -> None:
    """Until the client leaves; what it crashes is its own process."""
    command = [sys.executable, "-m", "minicpm_mlc.runtime_py.rpc.session", str(connection.fileno()), str(folder)]
    process = subprocess.Popen(command, pass_fds=[connection.fileno()])
    try:
        process.wait()
    finally:
        process.kill()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicpm-mlc" / "rpc"
