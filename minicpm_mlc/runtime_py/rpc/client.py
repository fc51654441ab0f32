"""A machine that runs `minicpm-mlc rpc-server`, and a bundle's library there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base import errors
from minicpm_mlc.base.errors import EngineError, MiniCPMError
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.bundle.host import Host
from minicpm_mlc.bundle.kernel_cases import Case, to_bytes
from minicpm_mlc.bundle.manifest import MANIFEST, Bundle, read_bundle
from minicpm_mlc.bundle.params import load_draft_ids
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.kernel_check import Checked
from minicpm_mlc.runtime_py.library import Pools, load_runtime
from minicpm_mlc.runtime_py.protocols import Library
from minicpm_mlc.runtime_py.rpc.message import CALL, LAST_PORT, PROTOCOL, pack, unpack

BLOCK = 1 << 20  # bytes of one upload message


class RemoteMachine:
    """A connection to a machine (a protocols.Machine) whose server listens at `address`,
    HOST:PORT.
    """

    shares_memory = False

    def __init__(self, address: str, key: str, progress: Progress = no_progress) -> None:
        """Raises EngineError when nobody answers at HOST:PORT, not to this key or version, or
        another client is served.
        """
        self.address = address
        self._progress = progress
        host, port = _parts(address)
        load_runtime()
        try:
            self._session = tvm_ffi.get_global_func("rpc.Connect")(host, port, key, False)
            self._call = self._session[CALL]
        except Exception as error:
            raise EngineError(_refused(address, _last_line(error))) from None
        hello, _ = self.call("hello")
        if hello["protocol"] != PROTOCOL:
            raise EngineError(
                f"{address} speaks protocol {hello['protocol']}, not {PROTOCOL}; install this "
                "version there"
            )
        there = hello["host"]
        features = None if there["features"] is None else frozenset(there["features"])
        self.host = Host(there["system"], there["machine"], features)
        self.tvm = str(hello["tvm"])
        self.cores = int(hello["cores"])

    @property
    def options(self) -> str:
        """Address and key as they are given, the key itself left out."""
        return f" --rpc {self.address} --key KEY"

    def call(
        self, method: str, arrays: Sequence[np.ndarray] = (), **values: Any
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Ask the server. Raises the MiniCPMError that it raised, EngineError when the connection
        breaks.
        """
        try:
            answer, arrays = unpack(bytes(self._call(pack({"method": method} | values, arrays))))
        except Exception as error:
            raise EngineError(
                f"{self.address} failed at {method}: {_last_line(error)}; connect again"
            ) from error
        if "error" in answer:
            kind, text = answer["error"]
            raise getattr(errors, kind, MiniCPMError)(text)
        return answer, arrays

    def read_bundle(self, path: str | Path) -> Bundle:
        """A bundle of this machine that can run there. Raises BundleError."""
        return read_bundle(path, host=self.host, tvm=self.tvm)

    def free_memory(self, device: str) -> int:
        """Bytes of a device's memory there that a bundle can take. Raises BundleError when the
        device is missing.
        """
        return int(self.call("free_memory", device=device)[0]["bytes"])

    def open_library(self, bundle: Bundle, threads: int) -> RemoteLibrary:
        """The compiled functions of a bundle, there; uploads the files that are missing."""
        self.upload(bundle)
        return RemoteLibrary(self, bundle, threads)

    def upload(self, bundle: Bundle) -> None:
        """Send what the machine lacks of a bundle's files; an upload that broke goes on where it
        ended.
        """
        names = {entry["sha256"]: name for name, entry in bundle.manifest.files.items()}
        missing: dict[str, int] = self.call("missing", wanted=list(names))[0]["missing"]
        total = sum(bundle.manifest.files[names[sha256]]["bytes"] for sha256 in missing)
        done = sum(missing.values())
        for sha256, start in missing.items():
            with open(bundle.path / names[sha256], "rb") as file:
                file.seek(start)
                while block := file.read(BLOCK):
                    self.call(
                        "write", [np.frombuffer(block, np.uint8)], sha256=sha256, offset=start
                    )
                    start += len(block)
                    done += len(block)
                    self._progress("upload", done, total)
            self.call("finish", sha256=sha256)


def connect(
    address: str | None,
    key: str | None,
    bundles: Sequence[str | Path | None] = (),
    progress: Progress = no_progress,
) -> RemoteMachine:
    """A connection to HOST:PORT, and these bundles uploaded. Raises EngineError, BundleError."""
    if not address or not key:
        raise EngineError("--rpc and --key belong together; minicpm-mlc rpc-server prints both")
    machine = RemoteMachine(address, key, progress)
    for path in filter(None, bundles):
        machine.upload(machine.read_bundle(path))
    return machine


class RemoteLibrary(Library):
    """A bundle's library on another machine: pools and weights lie there, rows and logits
    travel.
    """

    def __init__(self, machine: RemoteMachine, bundle: Bundle, threads: int) -> None:
        manifest = np.frombuffer((bundle.path / MANIFEST).read_bytes(), np.uint8)
        opened, _ = machine.call("open", [manifest], threads=threads)
        self.manifest = bundle.manifest
        self.vocab_size: int = bundle.manifest.model["vocab_size"]
        self.device_name = f"{opened['name']} at {machine.address}"
        self.device_identity = f"{opened['identity']} at {machine.address}"
        self._machine = machine
        self._number: int = opened["number"]
        if bundle.manifest.draft:
            self.draft_ids = load_draft_ids(bundle)

    @property
    def local(self) -> None:
        """None: neither its tensors nor its kernels are in this process."""
        return None

    def new_pools(self, num_pages: int) -> Pools:
        """Pools of `num_pages` pages, there."""
        return self._new_pools(num_pages, draft=False)

    def new_draft_pools(self, num_pages: int) -> Pools:
        """The same for the draft head's layer."""
        return self._new_pools(num_pages, draft=True)

    def _new_pools(self, num_pages: int, draft: bool) -> Pools:
        """Pools whose `tensors` are their number there."""
        request = {"library": self._number, "pages": num_pages, "draft": draft}
        made, _ = self._machine.call("new_pools", **request)
        return Pools(made["number"], made["bytes"])

    def run(
        self, kind: str, rows: Sequence[np.ndarray], pools: Pools, sparse: bool = False
    ) -> list[np.ndarray]:
        """One round trip: the rows go there, what the function returns comes back."""
        state = {"library": self._number, "pools": pools.tensors, "sparse": sparse}
        return self._machine.call(kind, rows, **state)[1]

    def check(self, case: Case, timed: bool = True) -> Checked:
        """Run a kernel case there. Raises BundleError if the kernel doesn't run at all."""
        data = np.frombuffer(to_bytes([case]), np.uint8)
        return Checked(**self._machine.call("check", [data], library=self._number, timed=timed)[0])


def _parts(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise EngineError(f"--rpc {address}: expected HOST:PORT, such as 192.168.1.20:9090")
    if not 1 <= int(port) <= LAST_PORT:
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
    return (
        f"no connection to {address} with this key ({why}); start a server there: minicpm-mlc "
        "rpc-server"
    )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
