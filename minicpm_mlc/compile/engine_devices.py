"""Devices beside the processor that the engine can be built for: native/src's runtimes, and their
APIs' headers, which the system has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minicpm_mlc.base.errors import CompileError

_SYSTEM = (Path("/usr/include"), Path("/usr/local/include"))


@dataclass(frozen=True)
class Api:
    """`header` is what a build includes first, in `folders` of the system's headers; `package` is
    Debian's that brings them.
    """

    header: str
    folders: tuple[str, ...]
    package: str

    def found(self) -> Path:
        """The folder that its header lies in. Raises CompileError where there is none."""
        for folder in _SYSTEM:
            if (folder / self.header).is_file():
                return folder
        raise CompileError(
            f"the engine for this device is built with {self.header}, which is missing; on "
            f"Debian: apt-get install {self.package}"
        )


APIS = {
    "opencl": Api("CL/cl.h", ("CL",), "opencl-headers"),
    "vulkan": Api("vulkan/vulkan.h", ("vulkan", "vk_video"), "libvulkan-dev"),
}
FLAGS = ("-DCL_TARGET_OPENCL_VERSION=120", "-Wno-missing-field-initializers")


def device_sources(native: Path, devices: Iterable[str]) -> list[Path]:
    """The runtimes of these devices."""
    folders = (native / "src" / name for name in ("common", *devices))
    return [path for folder in folders for path in sorted(folder.glob("*.cc"))]


def link_headers(devices: Iterable[str], folder: Path) -> Path:
    """A folder below this one with their APIs' headers and none of the system's others. Raises
    CompileError.
    """
    own = folder / "apis"
    own.mkdir()
    for device in devices:
        found = APIS[device].found()
        for name in APIS[device].folders:
            if (found / name).is_dir():
                (own / name).symlink_to(found / name)
    return own


def api_headers(device: str) -> dict[str, Path]:
    """Those that the device's runtime is built with, by their names in #include. Raises
    CompileError.
    """
    folder = APIS[device].found()
    parts = (folder / name for name in APIS[device].folders)
    paths = (path for part in parts for path in sorted(part.rglob("*.h")))
    return {path.relative_to(folder).as_posix(): path for path in paths}
