"""One file per device: what to compile for, how to link, what is needed to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..errors import CompileError
from .cpu import CpuTarget
from .opencl import OpenCLTarget


class Target(Protocol):
    """What the compiler asks of a device."""

    @property
    def device(self) -> str: ...
    @property
    def cpu(self) -> str: ...
    @property
    def int8_dot(self) -> str | None: ...
    @property
    def kernels(self) -> Any: ...
    def tvm_target(self) -> Any: ...
    def tir_pipeline(self) -> str: ...
    def describe(self) -> dict[str, Any]: ...
    def link(self, library: str, objects: list[str], **options: Any) -> None: ...


_TARGETS: dict[str, Callable[[str | None], Target]] = {
    "cpu": lambda cpu: CpuTarget.of(cpu or "native"),
    "linux-arm64": lambda cpu: CpuTarget.of(cpu or "generic", "aarch64"),
    "opencl": lambda cpu: OpenCLTarget(CpuTarget.of(cpu or "native")),
}
DEVICES = tuple(_TARGETS)


def get_target(device: str, cpu: str | None = None) -> Target:
    """The target of `--device`. Raises CompileError naming the devices that exist.

    `cpu` None: this machine's processor where it is the device or beside it, else one whose code runs on all of its kind.
    """
    if device not in _TARGETS:
        raise CompileError(f"--device {device}: not a device; there is {', '.join(DEVICES)}")
    return _TARGETS[device](cpu)
