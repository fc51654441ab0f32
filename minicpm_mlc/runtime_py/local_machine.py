"""This machine, as the engine sees one."""

from __future__ import annotations

from pathlib import Path

from minicpm_mlc.bundle.manifest import Bundle, read_bundle
from minicpm_mlc.runtime_py.machine import physical_cores
from minicpm_mlc.runtime_py.protocols import Library


class LocalMachine:
    """The machine that this process runs on (a protocols.Machine)."""

    options = ""
    shares_memory = True

    @property
    def cores(self) -> int:
        return physical_cores()

    def free_memory(self, device: str) -> int:
        from minicpm_mlc.runtime_py.device_here import open_device

        return open_device(device).free

    def read_bundle(self, path: str | Path) -> Bundle:
        return read_bundle(path)

    def open_library(self, bundle: Bundle, threads: int) -> Library:
        from minicpm_mlc.runtime_py.library import LocalLibrary

        return LocalLibrary(bundle, threads)
