"""Every fuzz target (tests/fuzz) over its seeds, what once crashed it, and some mutations, each in
a process of its own; and what makes a run of them fail.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import driver
import mutations
import pytest

from minicpm_mlc.base.errors import CheckpointError

FUZZ = Path(__file__).parent / "fuzz"


@pytest.mark.parametrize("name", driver.names())
def test_strangers_files_end_in_an_error_of_ours(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZ / "driver.py"), name, "--crashes", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr


def tried(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> driver.Runner:
    monkeypatch.setattr(driver, "SECONDS", 0.2)
    runner = driver.Runner(SimpleNamespace(run=run), tmp_path, tmp_path / "crashes")
    for data in (b"one", b"two"):
        runner(data)
    return runner


def test_a_traceback_is_a_crash_and_its_input_is_kept_once(tmp_path, monkeypatch, capsys) -> None:
    def run(data: bytes, folder: Path) -> None:
        raise KeyError(data)

    runner = tried(run, tmp_path, monkeypatch)
    (kept,) = (tmp_path / "crashes").iterdir()
    assert kept.read_bytes() == b"one" and len(runner.seen) == 1
    assert driver.report("name", runner) == 1
    assert "KeyError at test_fuzz.py" in capsys.readouterr().out


def test_what_takes_too_long_is_a_crash(tmp_path, monkeypatch) -> None:
    def run(data: bytes, folder: Path) -> None:
        while data == b"two":
            pass

    assert tried(run, tmp_path, monkeypatch).seen.pop().startswith("SlowError")


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited on Linux alone")
def test_a_reader_that_takes_more_than_its_file_is_a_crash(tmp_path) -> None:
    def run(data: bytes, folder: Path) -> None:
        for size in (80 << 20, 2 * len(data)):
            try:
                mmap.mmap(-1, size).close()
            except OSError:
                raise MemoryError from None

    small, large = b"x", bytes(40 << 20)
    for is_reader, crashes in ((False, 0), (True, 1)):
        target = SimpleNamespace(run=run, READER=is_reader)
        runner = driver.Runner(target, tmp_path, tmp_path / "crashes")
        assert runner(small) and runner(large)  # the first imports what it needs
        assert runner(small) != is_reader and len(runner.seen) == crashes


def test_errors_of_ours_are_none(tmp_path, monkeypatch) -> None:
    def run(data: bytes, folder: Path) -> None:
        raise CheckpointError("damaged")

    runner = tried(run, tmp_path, monkeypatch)
    assert not runner.seen and runner.tried == 2 and driver.report("name", runner) == 0


def test_mutations_are_the_same_for_the_same_seed() -> None:
    import random

    for data in (b'{"a": [1, {"b": 2}]}', b"\x07\0\0\0\0\0\0\0[1, 2]\n and more", b"plain", b""):
        made = [[mutations.mutate(data, random.Random(seed)) for seed in range(50)] for _ in "ab"]
        assert made[0] == made[1] and len(set(made[0])) > 10
