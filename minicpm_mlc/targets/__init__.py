"""One file per device: what to compile for, how to link, what is needed to run."""

from __future__ import annotations

from ..errors import CompileError
from .cpu import CpuTarget

DEVICES = ("cpu",)


def get_target(device: str, cpu: str) -> CpuTarget:
    """The target of `--device`. Raises CompileError naming the devices that exist."""
    if device not in DEVICES:
        raise CompileError(f"--device {device}: not a device; there is {', '.join(DEVICES)}")
    return CpuTarget.of(cpu)
