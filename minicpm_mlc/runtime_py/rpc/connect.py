"""A connection to a server within a time limit. TVM's client has none, so it waits in a thread of
its own, which is left behind when nobody answers.
"""

from __future__ import annotations

import os
import queue
import re
import socket
import stat
import threading
from contextlib import suppress
from typing import Any

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.base.progress import Progress
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.library import load_runtime
from minicpm_mlc.runtime_py.rpc.message import LAST_PORT
from minicpm_mlc.runtime_py.rpc.sockets import end_when_silent

PATIENCE_SECONDS = 3  # before it is said that nobody answers yet
CONNECT_SECONDS = 60  # a slow phone takes some to start the process that answers


def open_session(address: str, key: str, progress: Progress) -> Any:
    """TVM's session with the server at HOST:PORT. Raises EngineError, which never shows the
    key.
    """
    host, port = _parts(address)
    load_runtime()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_ask, args=(host, port, key, answers), daemon=True).start()
    answer = _within(answers, PATIENCE_SECONDS)
    if answer is None:
        stage = f"no answer yet from {address}"
        progress(stage, 0, 1)
        answer = _within(answers, CONNECT_SECONDS - PATIENCE_SECONDS)
        progress(stage, 1, 1)
    if answer is None:
        raise EngineError(
            f"nobody answers at {address} within {CONNECT_SECONDS} s; is minicpm-mlc rpc-server "
            "running there, and is there no firewall between?"
        )
    if isinstance(answer, Exception):
        raise EngineError(_refused(address, last_line(answer).replace(key, "KEY"))) from None
    _watch(port)
    return answer


def last_line(error: Exception) -> str:
    """What an error of TVM says, without the places in its sources and the condition checked."""
    *_, last = str(error).strip().splitlines() or [""]
    return re.sub(r"^Check failed: .* is false: ", "", last) or type(error).__name__


def _ask(host: str, port: int, key: str, answers: queue.SimpleQueue[Any]) -> None:
    """The session, or why there is none."""
    try:
        answers.put(tvm_ffi.get_global_func("rpc.Connect")(host, port, key, False))
    except Exception as error:
        answers.put(error)


def _within(answers: queue.SimpleQueue[Any], seconds: float) -> Any:
    with suppress(queue.Empty):
        return answers.get(timeout=seconds)
    return None


def _watch(port: int) -> None:
    """Have connections to this port end when the other machine is gone. TVM doesn't say which
    socket is its own, so all of this process are looked at.
    """
    for name in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else ():
        with suppress(OSError):  # the folder's own descriptor is gone again
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as same:
                    if same.family != socket.AF_UNIX and same.getpeername()[1] == port:
                        end_when_silent(same)


def _parts(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()):
        raise EngineError(f"--rpc {address}: expected HOST:PORT, such as 192.168.1.20:9090")
    if not 1 <= int(port[:6]) <= LAST_PORT:
        raise EngineError(
            f"--rpc {address}: port {port} is none of 1 to {LAST_PORT}; rpc-server prints its own"
        )
    return host, int(port)


def _refused(address: str, why: str) -> str:
    """`why` is what TVM says; a key that is taken is the server's word for being busy."""
    if "server already have key" in why:
        return (
            f"{address} is busy with another client; wait until that one ends, or start a "
            "second server on another --port"
        )
    if "cannot find server that matches key" in why:
        return (
            f"no connection to {address} with this key: the server has another one; give that in "
            "MINICPM_MLC_KEY or --key-file"
        )
    return f"no connection to {address} ({why}); start a server there: minicpm-mlc rpc-server"
