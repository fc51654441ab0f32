"""A machine that runs `minicpm-mlc rpc-server`, and a bundle's library there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import EngineError, MiniCPMError
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.bundle.host import Host
from minicpm_mlc.bundle.kernel_cases import Case, to_bytes
from minicpm_mlc.bundle.manifest import MANIFEST, Bundle, read_bundle
from minicpm_mlc.bundle.params import load_draft_ids
from minicpm_mlc.runtime_py.kernel_check import Checked
from minicpm_mlc.runtime_py.library import Pools
from minicpm_mlc.runtime_py.protocols import Library
from minicpm_mlc.runtime_py.rpc.connect import last_line, open_session
from minicpm_mlc.runtime_py.rpc.message import CALL, PROTOCOL, UPDATE, pack, unpack

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
        self._session = open_session(address, key, progress)
        try:
            self._call = self._session[CALL]
        except Exception:
            raise EngineError(
                f"{address} is a server of TVM, not minicpm-mlc rpc-server; start that there"
            ) from None
        hello, _ = self.call("hello")
        if hello.get("protocol") != PROTOCOL:
            raise EngineError(
                f"{address} speaks protocol {hello.get('protocol')}, not {PROTOCOL}; install this "
                "version there"
            )
        try:
            there = hello["host"]
            features = None if there["features"] is None else frozenset(there["features"])
            self.host = Host(str(there["system"]), str(there["machine"]), features)
            self.tvm, self.cores = str(hello["tvm"]), int(hello["cores"])
        except (KeyError, TypeError, ValueError):
            raise EngineError(f"{address} says nothing that is known of itself; {UPDATE}") from None

    @property
    def options(self) -> str:
        """The command line's options that name it; the key comes from elsewhere."""
        return f" --rpc {self.address}"

    def call(
        self, method: str, arrays: Sequence[np.ndarray] = (), **values: Any
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Ask the server. Raises the MiniCPMError that it raised, EngineError when the connection
        breaks.
        """
        try:
            reply = bytes(self._call(pack({"method": method} | values, arrays)))
        except Exception as error:
            raise EngineError(
                f"{self.address} failed at {method}: {last_line(error)}; connect again"
            ) from error
        answer, arrays = unpack(reply)
        if "error" in answer:
            raise _error_of(answer["error"])
        return answer, arrays

    def read_bundle(self, path: str | Path, device: str | None = None) -> Bundle:
        """A bundle of this machine that can run there. Raises BundleError."""
        return read_bundle(path, device=device, host=self.host, tvm=self.tvm)

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
        sizes = {entry["sha256"]: entry["bytes"] for entry in bundle.manifest.files.values()}
        missing: dict[str, int] = self.call("missing", wanted=sizes)[0]["missing"]
        total = sum(sizes[sha256] for sha256 in missing)
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
        raise EngineError(
            "--rpc and a key belong together; rpc-server says both. Give the key in "
            "MINICPM_MLC_KEY or --key-file; in a terminal you are asked for it"
        )
    machine = RemoteMachine(address, key, progress)
    for path in filter(None, bundles):
        machine.upload(machine.read_bundle(path))
    return machine


class RemoteLibrary(Library):
    """A bundle's library on another machine: pools and weights lie there, rows and logits
    travel.
    """

    def __init__(self, machine: RemoteMachine, bundle: Bundle, threads: int) -> None:
        own = bundle.path / (bundle.manifest.part + MANIFEST)
        manifest = np.frombuffer(own.read_bytes(), np.uint8)
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


def _error_of(said: Any) -> MiniCPMError:
    """The error that the server raised: its class's name and its text."""
    kind, text = said if isinstance(said, list) and len(said) == 2 else ("", said)
    ours = {error.__name__: error for error in MiniCPMError.__subclasses__()}
    return ours.get(str(kind), MiniCPMError)(str(text))
