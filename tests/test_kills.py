"""Runs that are killed at any step: nothing half-written is ever read, and the next run puts right
what they left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import tiny_config, write_checkpoint
from test_bundle import MANIFEST, names, read, write

from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.base.files import write_text
from minicpm_mlc.base.partial import hold, leftovers, partial_beside
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.package import package_bundle
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.runtime_py.admission import admit

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def killed_at(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Runs `work` in a child that is killed before its step-th change of a file in `folder`;
    whether it came so far.
    """
    child = os.fork()
    if not child:
        left = step

        def watch(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event in STEPS and str(args[0]).startswith(str(folder)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def kills(folder: Path, work: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """The number of every step at which `work` was killed, with what it left in `folder`."""
    for step in range(200):
        shutil.rmtree(folder)
        folder.mkdir()
        prepare()
        if not killed_at(step, folder, work):
            assert step > 3
            return
        yield step
    raise AssertionError("it has more steps than are tried")


def loadable(folder: Path) -> Iterator[Path]:
    """Whatever in a folder, hidden or not, is taken for a bundle."""
    for path in folder.iterdir():
        try:
            Manifest.load(path)
        except BundleError:
            continue
        yield path


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
def test_a_bundle_that_is_killed_at_any_step_is_whole_or_not_there(
    place: Path, replaced: bool
) -> None:
    def work() -> None:
        write(place / "b", content=b"new", overwrite=True)

    def prepare() -> None:
        if replaced:
            write(place / "b", content=b"old")

    for _ in kills(place, work, prepare):
        for found in loadable(place):
            assert (found / "model.so").read_bytes() in (b"old", b"new")
            if found.name.startswith("."):
                admit(found, None, True)  # no run said yet that it is this machine's
            read(found, verify="always")
        if replaced:  # the next run, without --force, brings the old one back if need be
            with pytest.raises(CompileError, match="exists already"):
                write(place / "b")
            assert (place / "b" / "model.so").read_bytes() in (b"old", b"new")
        write(place / "b", content=b"next", overwrite=True)
        assert names(place) == ["b"] and (place / "b" / "model.so").read_bytes() == b"next"


def test_an_archive_that_is_killed_at_any_step_is_whole_or_not_there(
    place: Path, tmp_path: Path
) -> None:
    target = MANIFEST.target | {"triple": "x86_64-unknown-linux-gnu"}
    made = write(tmp_path / "b", Manifest(**{**vars(MANIFEST), "target": target}))
    archive = place / "b.tar"

    def work() -> None:
        package_bundle(made, "linux", archive)

    work()
    whole = archive.read_bytes()
    for _ in kills(place, work, lambda: None):
        assert not archive.exists() or archive.read_bytes() == whole
        work()
        assert names(place) == ["b.tar"] and archive.read_bytes() == whole


def test_a_file_that_is_killed_at_any_step_is_the_old_or_the_new_one(place: Path) -> None:
    file = place / "freq.json"

    def prepare() -> None:
        write_text(file, "old")

    for _ in kills(place, lambda: write_text(file, "new"), prepare):
        assert file.read_text() in ("old", "new")
        write_text(file, "next")
        assert names(place) == ["freq.json"] and file.read_text() == "next"


# ---- whose leftover it is


@pytest.mark.parametrize("kind", ["partial", "old"])
def test_case_106_a_leftover_of_the_own_process_number_is_a_leftover(
    place: Path, kind: str
) -> None:
    partial_beside(place / "b", kind).mkdir()
    (partial_beside(place / "b", kind) / "params_shard_0.bin").write_bytes(b"half")
    if kind == "old":
        write(place / "c")
        (place / "c").rename(place / "b")
    write(place / "b", overwrite=True)
    assert names(place) == ["b"]


def test_case_106_what_this_process_is_writing_is_no_leftover(place: Path) -> None:
    with BundleWriter(place / "b"), pytest.raises(CompileError, match="can't write into"):
        write(place / "b")
    assert names(place) == []


def test_case_106_a_process_number_that_is_in_use_again_keeps_no_leftover(place: Path) -> None:
    (place / f".b.partial-{os.getppid()}").mkdir()
    write(place / "b")
    assert names(place) == ["b"]


def test_what_looks_like_a_leftover_of_another_name_stays(place: Path) -> None:
    for name in (".b.partial-x", ".bb.partial-1", ".b.partial-", "b.partial-1"):
        (place / name).mkdir()
    write(place / "b")
    assert names(place) == [".b.partial-", ".b.partial-x", ".bb.partial-1", "b", "b.partial-1"]


@pytest.mark.parametrize("kind", ["partial", "old"])
def test_what_another_user_put_there_is_neither_brought_back_nor_removed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    theirs = partial_beside(place / "b", kind)
    write(place / "c")
    (place / "c").rename(theirs)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert list(leftovers(place / "b", kind)) == []
    theirs.rename(tmp_path / "c")
    theirs.symlink_to(tmp_path / "c")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert list(leftovers(place / "b", kind)) == []


def test_a_lock_ends_with_its_process(place: Path) -> None:
    (place / "x").mkdir()
    held = hold(place / "x")
    with pytest.raises(BlockingIOError):
        hold(place / "x")
    held.close()
    hold(place / "x").close()


# ---- Ctrl-C, and what the tools of a compilation want


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B", num_layers=1))
    return tmp_path / "model"


def compile_command(checkpoint: Path, *options: str, before: str = "") -> list[str]:
    code = f"{before}\nfrom minicpm_mlc.cli import main; main()"
    return [sys.executable, "-c", code, "compile", str(checkpoint), *options]


@pytest.mark.parametrize("wait", [0.2, 3.0])
def test_case_104_ctrl_c_in_the_library_leaves_nothing(
    checkpoint: Path, place: Path, tmp_path: Path, wait: float
) -> None:
    (tmp_path / "tmp").mkdir()
    command = compile_command(checkpoint, "-o", str(place / "b"))
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        assert process.stderr.readline() == "library...\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert names(place) == [] and names(tmp_path / "tmp") == []


@pytest.mark.parametrize("step", ["mkdir", "rename"])
def test_case_104_ctrl_c_within_a_step_takes_effect_after_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = getattr(Path, step)

    def interrupted(path: Path, *args: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return before(path, *args, **options)

    monkeypatch.setattr(Path, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(place / "b")
    assert names(place) == ([] if step == "mkdir" else ["b"])


NO_HOME = """
import pwd
def unknown(number): raise KeyError(number)
pwd.getpwuid = unknown
"""


def test_case_100_compile_works_without_a_home(checkpoint: Path, place: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    command = compile_command(checkpoint, "-o", str(place / "b"), "--dry-run", before=NO_HOME)
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
