"""What this machine has to give: processor cores and free memory, within the limits of its
container.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")
# The processors that this process may run on, asked for early: TVM may bind a thread that calls it
# to one of them.
CORES = (
    sorted(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else list(range(os.cpu_count() or 1))
)


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def physical_cores() -> int:
    """Cores this process may run on; hyper-threads of one core count once, and a container's quota
    is a limit.
    """
    siblings = {
        _read(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in CORES
    }
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    allowed = int(quota) // int(period) if quota.isdigit() else len(siblings)
    return max(1, min(len(siblings), allowed))


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    free = _meminfo_available() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(CGROUP / "memory.max")
    used = _read(CGROUP / "memory.current")
    return (
        min(free, int(limit) - int(used) + _file_cache())
        if limit.isdigit() and used.isdigit()
        else free
    )


def _meminfo_available() -> int:
    fields = (line.split() for line in _read(Path("/proc/meminfo")).splitlines())
    return next((int(f[1]) * 1024 for f in fields if f[0] == "MemAvailable:"), 0)


def _file_cache() -> int:
    """Bytes of the container's memory that hold files and are given back when needed."""
    fields = (line.split() for line in _read(CGROUP / "memory.stat").splitlines())
    return next((int(f[1]) for f in fields if f[0] == "inactive_file"), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
