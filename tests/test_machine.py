from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm_mlc.runtime_py import machine

GIB = 1 << 30
UNLIMITED_V1 = str((1 << 63) - 4096)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: four processors, no container limits."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    monkeypatch.setattr(machine, "CORES", [0, 1, 2, 3])
    return tmp_path


@pytest.fixture
def proc(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of a machine with 8 GiB free that says nothing else yet."""
    folder = tmp_path_factory.mktemp("proc")
    monkeypatch.setattr(machine, "PROC", folder)
    write(folder, {"meminfo": f"MemTotal: 9999999 kB\nMemAvailable: {8 * GIB >> 10} kB"})
    return folder


def write(folder: Path, texts: dict[str, str]) -> None:
    """Files by their paths below a folder."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")


def test_hyper_threads_of_one_core_count_once(files: Path) -> None:
    assert machine.physical_cores() == 4  # nothing known about siblings
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write(files, {f"cpu{cpu}/topology/thread_siblings_list": siblings})
    assert machine.physical_cores() == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("300000 100000", 3), ("50000 100000", 1)]
)
def test_a_containers_processor_quota_is_a_limit(files: Path, quota: str, cores: int) -> None:
    (files / "cpu.max").write_text(f"{quota}\n")
    assert machine.physical_cores() == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [(150_000, 2), (140_000, 1), (10_000, 1), (210_000, 2), (990_000, 4)]
)
def test_case_95_a_part_of_a_processor_is_rounded(files: Path, quota: int, cores: int) -> None:
    write(files, {"cpu.max": f"{quota} 100000"})
    assert machine.limits().cpus == quota / 100_000
    assert machine.physical_cores() == cores


def test_a_containers_memory_limit_counts_what_it_uses_but_not_file_cache(files: Path) -> None:
    free = machine.available_memory()
    assert free > 1 << 20
    (files / "memory.max").write_text("max\n")
    (files / "memory.current").write_text("600\n")
    assert machine.available_memory() > 1 << 20
    (files / "memory.max").write_text("1000\n")
    (files / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert machine.available_memory() == 500


@pytest.mark.parametrize("below", ["", "/docker/0123abc"])
def test_case_95_limits_of_cgroup_v1(files: Path, proc: Path, below: str) -> None:
    """At the top in a container, elsewhere where /proc/self/cgroup says."""
    memory, cpu = f"memory{below}", f"cpu,cpuacct{below}"
    write(proc, {"self/cgroup": f"5:memory:{below or '/'}\n4:cpu,cpuacct:{below or '/'}\n0::/"})
    limits = {
        f"{memory}/memory.limit_in_bytes": "209715200",
        f"{memory}/memory.usage_in_bytes": "10485760",
        f"{memory}/memory.stat": "cache 5000\ninactive_file 1\ntotal_inactive_file 4096",
        f"{cpu}/cpu.cfs_quota_us": "100000",
        f"{cpu}/cpu.cfs_period_us": "100000",
    }
    write(files, limits)
    assert machine.available_memory() == 209715200 - 10485760 + 4096
    assert machine.physical_cores() == 1


def test_case_95_cgroup_v1_in_a_container_without_a_path(files: Path) -> None:
    write(files, {"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "900"})
    write(files, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"})
    assert (machine.available_memory(), machine.physical_cores()) == (100, 2)


def test_case_95_no_limit_of_cgroup_v1(files: Path, proc: Path) -> None:
    write(files, {"memory/memory.limit_in_bytes": UNLIMITED_V1})
    write(files, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert (machine.available_memory(), machine.physical_cores()) == (8 * GIB, 4)


def test_case_95_a_container_that_sees_its_own_group_only(files: Path, proc: Path) -> None:
    """Without a name space the path is the host's, and what is mounted is the group's folder."""
    write(proc, {"self/cgroup": "5:memory:/kubepods/pod1/abc"})
    write(files, {"memory/memory.limit_in_bytes": UNLIMITED_V1})
    write(files, {"memory/memory.stat": f"hierarchical_memory_limit {GIB}"})
    assert machine.available_memory() == GIB


@pytest.mark.parametrize("top", ["", "unified/"])
def test_case_95_the_smallest_of_nested_groups_counts(files: Path, proc: Path, top: str) -> None:
    write(proc, {"self/cgroup": "0::/user.slice/user-1000.slice/run.scope"})
    slices = [f"{top}user.slice", f"{top}user.slice/user-1000.slice"]
    scope = f"{slices[1]}/run.scope"
    write(files, {f"{scope}/memory.max": "max", f"{scope}/cpu.max": "400000 100000"})
    write(files, {f"{slices[1]}/memory.max": "5000", f"{slices[1]}/memory.current": "1000"})
    write(files, {f"{slices[0]}/memory.high": "4000", f"{slices[0]}/memory.current": "1500"})
    write(files, {f"{slices[0]}/cpu.max": "200000 100000"})
    assert (machine.available_memory(), machine.physical_cores()) == (2500, 2)


def test_case_95_a_full_group_leaves_nothing(files: Path) -> None:
    write(files, {"memory.max": "1000", "memory.current": "1200"})
    assert machine.available_memory() == 0


def test_case_95_a_group_outside_what_is_mounted(files: Path, proc: Path) -> None:
    write(proc, {"self/cgroup": "0::/../other:with colon"})
    write(files.parent, {"other:with colon/memory.max": "1"})
    assert machine.available_memory() == 8 * GIB


@pytest.mark.parametrize(
    ("limit", "used"), [(resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")]
)
def test_case_98_rlimits_are_limits_of_memory(
    files: Path, proc: Path, monkeypatch: pytest.MonkeyPatch, limit: int, used: str
) -> None:
    """Less what this process uses, and what libraries and threads will take."""
    infinite = resource.RLIM_INFINITY
    bounds = {limit: (4 * GIB, infinite)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: bounds.get(kind, (infinite,) * 2))
    write(proc, {"self/status": f"Name:\tpython\n{used}:\t  1048576 kB\nThreads:\t1"})
    assert machine.available_memory() == 3 * GIB - machine.RESERVED


def test_case_98_a_system_that_promises_no_more_than_it_has(files: Path, proc: Path) -> None:
    meminfo = f"MemAvailable: {8 * GIB >> 10} kB\nCommitLimit: 4194304 kB\nCommitted_AS: 1048576 kB"
    write(proc, {"meminfo": meminfo, "sys/vm/overcommit_memory": "0"})
    assert machine.available_memory() == 8 * GIB
    write(proc, {"sys/vm/overcommit_memory": "2"})
    assert machine.available_memory() == 3 * GIB - machine.RESERVED


def test_case_98_ulimit_v_is_seen() -> None:
    code = "from minicpm_mlc.runtime_py.machine import available_memory as a; print(a())"
    program = f"ulimit -v 2000000; exec {sys.executable} -c '{code}'"
    out = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True)
    assert int(out.stdout) <= min(2_000_000 << 10, machine.available_memory()) - machine.RESERVED


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_case_95_affinity_is_a_limit() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from minicpm_mlc.runtime_py.machine import physical_cores; print(physical_cores())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == 1
