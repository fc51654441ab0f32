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
        """Physical ones that this process may use."""
        return physical_cores()

    def free_memory(self, device: str) -> int:
        """Bytes of a device's memory that a bundle can take. Raises BundleError when it is
        missing.
        """
        from minicpm_mlc.runtime_py.device_here import open_device

        return open_device(device).free

    def read_bundle(self, path: str | Path, device: str | None = None) -> Bundle:
        """A bundle that can run here. Raises BundleError."""
        return read_bundle(path, device=device)

    def open_library(self, bundle: Bundle, threads: int) -> Library:
        """The compiled functions of a bundle, in this process."""
        from minicpm_mlc.runtime_py.library import LocalLibrary

        return LocalLibrary(bundle, threads)
