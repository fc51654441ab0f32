"""The process that serves the present client, so that a crash ends that process alone."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from minicpm_mlc.runtime_py.rpc.sockets import end_when_silent


class ClientProcess:
    """One process at a time. It ends when its client leaves, and when the server does, even by a
    kill: then its standard input closes.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: where bundles are kept."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()

    @property
    def busy(self) -> bool:
        """Whether the client is still there."""
        return self._process is not None and self._process.poll() is None

    def begin(self, connection: socket.socket) -> None:
        """Serve a client until it leaves; returns at once. Raises OSError."""
        end_when_silent(connection)
        arguments = [str(connection.fileno()), str(self._folder)]
        command = [sys.executable, "-m", "minicpm_mlc.runtime_py.rpc.client_handler", *arguments]
        self._process = subprocess.Popen(
            command, pass_fds=[connection.fileno()], stdin=subprocess.PIPE
        )
