"""Messages of RPC: a server's answer that a client reads, and a client's request that it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.runtime_py.rpc.client import RemoteMachine
from minicpm_mlc.runtime_py.rpc.client_handler import ClientHandler
from minicpm_mlc.runtime_py.rpc.message import pack

NAME = "0" * 64


def seeds() -> list[bytes]:
    calls: list[dict[str, Any]] = [
        {"method": "hello"},
        {"method": "missing", "wanted": [NAME]},
        {"method": "finish", "sha256": NAME},
        {"method": "open", "threads": 1},
        {"method": "new_pools", "library": 0, "pages": 1, "draft": False},
        {"method": "prefill", "library": 0, "pools": 0, "sparse": False},
        {"error": ["BundleError", "damaged"]},
    ]
    block = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write = pack({"method": "write", "sha256": NAME, "offset": 0}, [block])
    return [*map(pack, calls), write, pack({}, [block.astype(np.float32), block.astype(np.int64)])]


def run(data: bytes, folder: Path) -> None:
    """What is wrong in a request goes back to the client that sent it, whatever it is; the server
    only has to live on. What is wrong in an answer is an EngineError.
    """
    machine = object.__new__(RemoteMachine)
    machine.address, machine._call = "here:1", lambda _: data
    try:
        machine.call("hello")
    except MiniCPMError:
        pass
    handler = ClientHandler(folder)
    try:
        handler._answer(data)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        pass
