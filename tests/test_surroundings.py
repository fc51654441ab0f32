"""What a compilation lends to its tools, and gives back."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from test_bundle import names

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.interrupts import interrupts_told
from minicpm_mlc.compile import writer as writer_module
from minicpm_mlc.compile.surroundings import some_home, temporary_files_in
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.runtime_py import load_failure as load_failure_module
from minicpm_mlc.runtime_py.load_failure import load_failure
from minicpm_mlc.targets.link import zig


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_case_101_zig_needs_no_home_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source.c").write_text("int f(int x) { return x; }")
    (tmp_path / "home").write_text("a file, so no folder can be made in it")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    output = str(tmp_path / "object.o")
    with temporary_files_in(tmp_path):
        target = "x86_64-linux-gnu.2.17"
        zig("cc", "-target", target, "-c", "-o", output, str(tmp_path / "source.c"))
    assert Path(output).exists()


def test_rob_26_temporary_files_lie_beside_the_bundle_and_go(place: Path) -> None:
    before = (os.environ.get("TMPDIR"), tempfile.gettempdir())
    with BundleWriter(place / "b") as bundle:
        with bundle.scratch() as scratch, temporary_files_in(scratch):
            assert scratch.parent.parent == place
            made = Path(tempfile.mkdtemp())
            assert made.parent == scratch and os.environ["TMPDIR"] == str(scratch)
        assert not scratch.exists()
        assert (os.environ.get("TMPDIR"), tempfile.gettempdir()) == before
    assert names(place) == []


def test_rob_26_a_tool_that_fails_on_a_full_disk_is_told_as_that(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = writer_module.shutil._ntuple_diskusage  # type: ignore[attr-defined]
    with pytest.raises(CompileError, match=f"the disk of {place} is full after 3 bytes"):
        with BundleWriter(place / "b") as bundle:
            bundle.add_file("model.so", b"abc")
            monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda _: usage(9, 9, 0))
            raise CompileError("zig cc failed: NoSpaceLeft")
    assert names(place) == []


def test_case_100_a_home_is_lent_only_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/mine")
    with some_home():
        assert os.environ["HOME"] == "/mine"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with pytest.raises(RuntimeError):
        Path.home()
    with some_home():
        assert Path.home() == Path("/nonexistent")
    assert "HOME" not in os.environ


def test_case_104_ctrl_c_is_told_whatever_became_of_it() -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), interrupts_told():
        try:
            interrupt()
        except KeyboardInterrupt:
            raise RuntimeError("a callback of TVM was interrupted") from None
    with pytest.raises(KeyboardInterrupt), interrupts_told():
        try:
            interrupt()
        except KeyboardInterrupt:
            pass  # swallowed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(RuntimeError, match="no interrupt"), interrupts_told():
        raise RuntimeError("no interrupt")


def test_a_folder_whose_name_is_not_text_is_named_as_the_reason() -> None:
    folder = Path(os.fsdecode(b"/nowhere/caf\xe9"))
    assert "is not UTF-8 text" in load_failure(folder / "model.so", OSError("no such file"))


def test_case_109_a_noexec_mount_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "model.so"
    error = OSError("failed to map segment from shared object")
    assert "does not load: failed to map segment" in load_failure(library, error)
    monkeypatch.setattr(load_failure_module, "_mounted_noexec", lambda folder: True)
    assert "(it is mounted noexec); move the bundle to another one" in load_failure(library, error)


def test_case_109_noexec_is_read_off_the_mount() -> None:
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        pytest.skip("Linux tells its mounts there")
    lines = [line.split() for line in mounts.read_text().splitlines()]
    flags = {line[1]: line[3].split(",") for line in lines}
    for folder in {"/", "/proc", "/sys", "/tmp"} & flags.keys():
        assert load_failure_module._mounted_noexec(Path(folder)) == ("noexec" in flags[folder])
