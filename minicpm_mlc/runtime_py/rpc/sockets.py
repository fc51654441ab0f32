"""Connections that notice when the other machine is gone: its network broke, or it lost power."""

from __future__ import annotations

import socket

IDLE_SECONDS = 120  # of silence before the other machine is asked for a sign of life,
ASKS = 6  # so many times,
ASK_SECONDS = 20  # this far apart
SILENT_SECONDS = IDLE_SECONDS + ASKS * ASK_SECONDS  # so long a machine may sleep or be out of reach
# Not every system has all; macOS calls the first one TCP_KEEPALIVE.
_OPTIONS = {
    "TCP_KEEPIDLE": IDLE_SECONDS,
    "TCP_KEEPALIVE": IDLE_SECONDS,
    "TCP_KEEPCNT": ASKS,
    "TCP_KEEPINTVL": ASK_SECONDS,
    "TCP_USER_TIMEOUT": SILENT_SECONDS * 1000,  # the same for bytes that are on their way
}


def end_when_silent(connection: socket.socket) -> None:
    """Have the system end a connection whose other side is silent for SILENT_SECONDS."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
