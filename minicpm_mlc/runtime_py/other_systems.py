"""What macOS and Windows tell about their machine; Linux tells it in files (machine.py)."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """Bytes of memory, those that can be taken without swapping, and physical cores."""

    memory: int
    available: int
    cores: int


def told_by_system() -> Told:
    """The facts of this machine."""
    import psutil

    memory = psutil.virtual_memory()
    return Told(memory.total, memory.available, psutil.cpu_count(logical=False) or 1)


def processor_name() -> str:
    """The processor's name; empty where the system doesn't tell."""
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string")
    if sys.platform == "win32":
        import winreg

        with suppress(OSError):
            place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    return ""


def _sysctl(name: str) -> str:
    with suppress(OSError):
        command = ["/usr/sbin/sysctl", "-n", name]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""
