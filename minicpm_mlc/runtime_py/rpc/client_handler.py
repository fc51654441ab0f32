"""The server's side of one client: `python -m minicpm_mlc.runtime_py.rpc.client_handler SOCKET
FOLDER`, started by the server.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import EngineError, MiniCPMError
from minicpm_mlc.bundle.host import this_host
from minicpm_mlc.bundle.kernel_cases import from_bytes
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.bundle.trust import allow
from minicpm_mlc.bundle.tvm_runtime import tvm_version
from minicpm_mlc.runtime_py.device_here import open_device
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.library import LocalLibrary, Pools, load_runtime
from minicpm_mlc.runtime_py.machine import physical_cores
from minicpm_mlc.runtime_py.protocols import CALLS
from minicpm_mlc.runtime_py.rpc.message import CALL, PROTOCOL, pack, unpack
from minicpm_mlc.runtime_py.rpc.store import Store

Reply = tuple[dict[str, Any], Sequence[np.ndarray]]  # named values and arrays


class ClientHandler:
    """What a client can ask for: the methods without an underscore, and the calls of a library.
    Libraries and pools are numbers to it. Each method takes a message's arrays and named values.
    """

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)
        self._libraries: list[LocalLibrary] = []
        self._pools: list[Pools] = []

    def _answer(self, message: bytes) -> bytes:
        try:
            values, arrays = unpack(bytes(message))
            name = str(values.pop("method", None))
            return pack(*self._method(name)(arrays, **values))
        except MiniCPMError as error:
            return pack({"error": [type(error).__name__, str(error)]})
        except (OSError, MemoryError) as error:
            return pack({"error": [EngineError.__name__, f"the server: {error or 'no memory'}"]})

    def _method(self, name: str) -> Callable[..., Reply]:
        """Raises EngineError for a name that a client can't ask for."""
        if name in CALLS:
            return partial(self._run, name)
        if name not in METHODS:
            raise EngineError(f"the server knows no {name}; update it: pip install -U minicpm-mlc")
        return getattr(self, name)

    def _run(
        self, kind: str, arrays: list[np.ndarray], library: int, pools: int, sparse: bool
    ) -> Reply:
        """A call of a library, as Library.run."""
        return {}, self._libraries[library].run(kind, arrays, self._pools[pools], sparse)

    def hello(self, _: list[np.ndarray]) -> Reply:
        """What this machine is, and what it speaks."""
        host = this_host()
        features = None if host.features is None else sorted(host.features)
        machine = {"system": host.system, "machine": host.machine, "features": features}
        tvm = tvm_version()
        cores = physical_cores()
        return {"protocol": PROTOCOL, "tvm": tvm, "host": machine, "cores": cores}, []

    def free_memory(self, _: list[np.ndarray], device: str) -> Reply:
        """Bytes of a device's memory that a bundle can take."""
        return {"bytes": open_device(device).free}, []

    def missing(self, _: list[np.ndarray], wanted: dict[str, int]) -> Reply:
        """Which files, {SHA-256: bytes}, have to be uploaded, and the bytes that are here of
        each.
        """
        return {"missing": self._store.missing(wanted)}, []

    def write(self, arrays: list[np.ndarray], sha256: str, offset: int) -> Reply:
        """A block of a file, uint8 [bytes]."""
        self._store.write(sha256, offset, arrays[0])
        return {}, []

    def finish(self, _: list[np.ndarray], sha256: str) -> Reply:
        """A file is whole."""
        self._store.finish(sha256)
        return {}, []

    def open(self, arrays: list[np.ndarray], threads: int) -> Reply:
        """A bundle's library, by the bytes of its manifest. Who knows the key may run it."""
        allow(hashlib.sha256(arrays[0].tobytes()).hexdigest())
        # the store has hashed every file
        bundle = read_bundle(self._store.bundle(arrays[0].tobytes()), verify="never")
        library = LocalLibrary(bundle, threads)
        self._libraries.append(library)
        device = {"name": library.device_name, "identity": library.device_identity}
        return {"number": len(self._libraries) - 1} | device, []

    def new_pools(self, _: list[np.ndarray], library: int, pages: int, draft: bool) -> Reply:
        """Pools of a library, or of its draft head."""
        opened = self._libraries[library]
        self._pools.append(opened.new_draft_pools(pages) if draft else opened.new_pools(pages))
        return {"number": len(self._pools) - 1, "bytes": self._pools[-1].bytes}, []

    def check(self, arrays: list[np.ndarray], library: int, timed: bool) -> Reply:
        """A kernel case, by its bytes."""
        (case,) = from_bytes(arrays[0].tobytes())
        return asdict(self._libraries[library].check(case, timed)), []


METHODS = frozenset(name for name in vars(ClientHandler) if not name.startswith("_"))


def serve(socket: int, folder: Path) -> None:
    """Answer one client until it leaves."""
    os.umask(0o077)  # what a client brings is for this user's eyes
    load_runtime()
    tvm_ffi.register_global_func(CALL, ClientHandler(folder)._answer)
    tvm_ffi.get_global_func("rpc.ServerLoop")(socket)


def _end_with_the_server() -> None:
    """Its end closes this process's standard input, whatever ended it."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    serve(int(sys.argv[1]), Path(sys.argv[2]))
