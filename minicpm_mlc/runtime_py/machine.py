"""What this machine has to give: processor cores and free memory, within the limits that this
process runs under.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from math import floor, inf
from pathlib import Path, PurePosixPath

from minicpm_mlc.runtime_py.other_systems import processor_name, told_by_system

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None

CGROUP = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")
PROC = Path("/proc")
# The processors that this process may run on, asked for early: TVM may bind a thread that calls it
# to one of them.
CORES = (
    sorted(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else list(range(os.cpu_count() or 1))
)
# of control groups, v2 and v1: a limit, the bytes in use, and which of those hold files that are
# given back when memory is needed
GROUP_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
# Address space that libraries, and the stacks and heaps of threads, take after memory is asked for:
# the demo's chat takes 90 MiB with 2 threads.
RESERVED = (96 << 20) + len(CORES) * (8 << 20)


@dataclass(frozen=True)
class Limits:
    """What the limits of this process leave: bytes of memory that it may still take, and
    processors, which may be a fraction. Infinite where nothing limits it.
    """

    memory: float
    cpus: float


def is_linux() -> bool:
    """Whether /proc and /sys tell; Android's are Linux's."""
    return platform.system() in ("Linux", "Android")


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    lines = _read(PROC / "cpuinfo").splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or processor_name() or platform.processor() or platform.machine()


def physical_cores() -> int:
    """Cores this process may run on; hyper-threads of one core count once. A quota of processors
    is rounded: half a processor more is worth a thread, a tenth is not.
    """
    siblings = {
        _read(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in CORES
    }
    cores = len(siblings) if is_linux() else min(told_by_system().cores, len(CORES))
    return max(1, floor(min(cores, limits().cpus + 0.5)))


def total_memory() -> int:
    """Bytes that this machine has."""
    known = _table(PROC / "meminfo").get("MemTotal:", 0) * 1024
    return known or told_by_system().memory


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    known = _table(PROC / "meminfo").get("MemAvailable:", 0) * 1024
    free = known or told_by_system().available
    return max(0, int(min(free, limits().memory)))


def limits() -> Limits:
    """Every limit of this process, of which the smallest counts: those of its control groups (v1
    and v2, a container's and all that hold it), its rlimits, and the system's promise to keep what
    it gives out.
    """
    memory = [*_group_memory(), *(left - RESERVED for left in _address_space())]
    return Limits(min(memory, default=inf), min(_quotas(), default=inf))


def _group_memory() -> Iterator[int]:
    for group in _groups("memory"):
        held = _table(group / "memory.stat")
        for limit, used, files in GROUP_MEMORY:
            if (bound := _read(group / limit)).isdigit():
                # v1 tells here what holds for a container whose outer groups it can't see
                most = min(int(bound), held.get("hierarchical_memory_limit", int(bound)))
                yield most - int(_read(group / used) or 0) + held.get(files, 0)


def _address_space() -> Iterator[int]:
    """Bytes that may still be reserved, whether they are ever written or not."""
    used = _table(PROC / "self/status")
    if resource and used:
        for limit, name in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
            bound, _ = resource.getrlimit(limit)
            if bound != resource.RLIM_INFINITY:
                yield bound - used.get(name, 0) * 1024
    known = _table(PROC / "meminfo")
    if _read(PROC / "sys/vm/overcommit_memory") == "2" and "CommitLimit:" in known:
        yield (known["CommitLimit:"] - known.get("Committed_AS:", 0)) * 1024


def _quotas() -> Iterator[float]:
    """Processors, by the time that a group may compute in each period."""
    for group in _groups("cpu"):
        v2, _, v2_period = _read(group / "cpu.max").partition(" ")
        v1, v1_period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        for quota, period in ((v2, v2_period), (v1, v1_period)):
            if quota.isdigit() and period.isdigit() and int(period):
                yield int(quota) / int(period)


def _groups(controller: str) -> set[Path]:
    """The folders of this process's control group and of those that hold it, as far as they are
    seen. In a container its own group is at the top.
    """
    found = {CGROUP, CGROUP / controller}
    for line in _read(PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        parts = PurePosixPath(path).parts[1:]
        if ".." in parts or not (controllers == "" or controller in controllers.split(",")):
            continue
        tops = (controllers, controller) if controllers else ("", "unified")
        found |= {
            CGROUP.joinpath(top, *parts[:depth]) for top in tops for depth in range(len(parts) + 1)
        }
    return found


def _table(path: Path) -> dict[str, int]:
    """The numbers of a file of lines such as `inactive_file 4096` or `VmSize:  512 kB`."""
    fields = (line.split() for line in _read(path).splitlines())
    return {f[0]: int(f[1]) for f in fields if len(f) > 1 and f[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
