"""minicpm-mlc rpc-server: serves clients that know the key, one at a time, each in a process of its
own.

The handshake is TVM's: a magic number, the length of a key, "client:KEY"; the answer is a code, and
the server's name.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.runtime_py.rpc.client_process import ClientProcess
from minicpm_mlc.runtime_py.rpc.key import LONGEST, checked
from minicpm_mlc.runtime_py.rpc.message import LAST_PORT
from minicpm_mlc.runtime_py.rpc.store import make_folder, remove_leftovers

MAGIC = 0xFF271  # TVM's, src/runtime/rpc/rpc_endpoint.h
BUSY, MISMATCH = MAGIC + 1, MAGIC + 2  # the first is TVM's word for a key that is taken
PREFIX = b"client:"
NAME = b"server:minicpm-mlc"
AT_ONCE = 64  # connections that are not served yet
ROOM_SECONDS = 0.01  # from one that is sent away to the next: each has 0.6 s to say its key
HANDSHAKE_SECONDS = 10  # until a connection must have said its key
WRONG_KEY_SECONDS = 1  # that a wrong key waits for its answer
LEAVING_SECONDS = 3  # that a client's process may take to end, before the next one is sent away

Say = Callable[[str], None]


def run_server(
    host: str = "127.0.0.1",
    port: int = 9090,
    key: str | None = None,
    folder: str | Path | None = None,
    say: Say = print,
) -> None:
    """Serve clients for ever. `key` None: a random one, which is said. Bundles are kept in
    `folder`.

    Another client is told that the server is busy. Raises EngineError when the address or the
    folder can't be had, and on Windows, which hands no open connection to another process.
    """
    if os.name == "nt":
        raise EngineError("rpc-server runs on Linux and macOS; a client may be on Windows")
    if not 0 <= port <= LAST_PORT:
        raise EngineError(f"--port {port}: expected 0 to {LAST_PORT}, such as --port 9090")
    key = None if key is None else checked(key, "--key")
    place = Path(folder) if folder else _cache()
    make_folder(place)
    remove_leftovers(place)
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise EngineError(
            f"{host}:{port} can't be listened at ({error.strerror}); try another --port"
        ) from None
    client = ClientProcess(place)
    with listening, client:
        address = "{}:{}".format(*listening.getsockname()[:2])
        say(f"listening at {address}; a client: minicpm-mlc chat BUNDLE --rpc {address}")
        if key is None:
            key = secrets.token_urlsafe(12)
            say(f"the key that it asks for: {key}")
        asyncio.run(Door(key, client, say).welcome(listening))


class Door:
    """Lets in who knows the key, whatever others do meanwhile: every connection has a task and a
    time limit, and there are at most AT_ONCE.
    """

    def __init__(self, key: str, client: ClientProcess, say: Say) -> None:
        self._expected = PREFIX + key.encode()
        self._client = client
        self._say = say
        self._tasks: set[asyncio.Task[None]] = set()
        # those that have said no key yet, the oldest first, and their addresses
        self._silent: dict[asyncio.Task[None], str] = {}

    async def welcome(self, listening: socket.socket) -> None:
        """Take connections for ever."""
        listening.setblocking(False)
        while True:
            try:
                connection, peer = await asyncio.get_running_loop().sock_accept(listening)
            except OSError:  # gone again, or no more files may be opened for now
                await asyncio.sleep(0.1)
                continue
            await self._make_room()
            task = asyncio.create_task(self._meet(connection, peer[0]))
            self._tasks.add(task)
            self._silent[task] = peer[0]
            task.add_done_callback(self._forget)

    async def _make_room(self) -> None:
        """Where there are too many, one that says nothing goes: the oldest of the address that has
        most of them. One that knows the key says it at once, and has the time to.
        """
        while len(self._tasks) >= AT_ONCE:
            await asyncio.wait(
                self._tasks, timeout=ROOM_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if len(self._tasks) >= AT_ONCE and self._silent:
                ((worst, _),) = Counter(self._silent.values()).most_common(1)
                next(task for task, host in self._silent.items() if host == worst).cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._silent.pop(task, None)

    async def _meet(self, connection: socket.socket, host: str) -> None:
        """One connection from its first byte to its answer."""
        with connection, suppress(OSError, asyncio.TimeoutError):
            given = await asyncio.wait_for(_key(connection), HANDSHAKE_SECONDS)
            if task := asyncio.current_task():
                self._silent.pop(task, None)
            if given is None:  # another protocol
                return
            if hmac.compare_digest(given, self._expected):
                await self._let_in(connection, host)
            else:
                self._log(f"a wrong key from {host}")
                await asyncio.sleep(WRONG_KEY_SECONDS)
                connection.sendall(_code(MISMATCH))

    async def _let_in(self, connection: socket.socket, host: str) -> None:
        """Serve it, or say that another client is served."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + LEAVING_SECONDS
        while self._client.busy and clock() < deadline:
            await asyncio.sleep(0.05)
        if self._client.busy:
            connection.sendall(_code(BUSY))
            return
        connection.setblocking(True)  # the client's process has the same socket
        connection.sendall(_code(MAGIC) + _code(len(NAME)) + NAME)
        try:
            self._client.begin(connection)
        except OSError as error:
            self._log(f"{host} can't be served ({error.strerror})")
        else:
            self._log(f"serving {host}")

    def _log(self, line: str) -> None:
        with suppress(OSError):  # whoever read the output has left: no reason to stop
            self._say(line)


async def _key(connection: socket.socket) -> bytes | None:
    """What a connection gives as its key; None where it doesn't speak the protocol."""
    connection.setblocking(False)
    magic, length = struct.unpack("<ii", await _received(connection, 8))
    if magic != MAGIC or not 0 < length <= len(PREFIX) + LONGEST:
        return None
    return await _received(connection, length)


async def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = await asyncio.get_running_loop().sock_recv(connection, size - len(data))
        if not block:
            raise OSError("the client left")
        data += block
    return data


def _code(number: int) -> bytes:
    return struct.pack("<i", number)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicpm-mlc" / "rpc"
