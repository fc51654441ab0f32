from __future__ import annotations

from pathlib import Path

import pytest

from minicpm_mlc.runtime_py import machine


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: four processors, no container limits."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    monkeypatch.setattr(machine, "CORES", [0, 1, 2, 3])
    return tmp_path


def test_hyper_threads_of_one_core_count_once(files: Path) -> None:
    assert machine.physical_cores() == 4  # nothing known about siblings
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (files / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (files / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    assert machine.physical_cores() == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("300000 100000", 3), ("50000 100000", 1)]
)
def test_a_containers_processor_quota_is_a_limit(files: Path, quota: str, cores: int) -> None:
    (files / "cpu.max").write_text(f"{quota}\n")
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
