"""What an RPC server keeps: private, whole when it is used, and put right after a cut."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import NARROW
from test_rpc import KEY, bundle_of, started

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import BundleError, EngineError
from minicpm_mlc.runtime_py.rpc import store as store_module
from minicpm_mlc.runtime_py.rpc.client import RemoteMachine
from minicpm_mlc.runtime_py.rpc.store import Store, make_folder, remove_leftovers

DATA = np.arange(200, dtype=np.uint8)
SHA256 = hashlib.sha256(DATA.tobytes()).hexdigest()
WANTED = {SHA256: len(DATA)}


def uploaded(folder: Path) -> Store:
    store = Store(folder)
    store.write(SHA256, 0, DATA)
    store.finish(SHA256)
    return store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_rob_27_nobody_else_can_read_what_is_stored(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "old" / "files").mkdir(parents=True)  # as earlier versions made them
        for folder in (tmp_path / "old", tmp_path / "new"):
            uploaded(folder)
            Store(folder).write("0" * 64, 0, DATA)
            assert {mode(place) for place in (folder, folder / "files", folder / "bundles")} == {
                0o700
            }
            assert {mode(file) for file in (folder / "files").iterdir()} == {0o600}
    finally:
        os.umask(before)


def test_a_folder_with_other_things_keeps_its_mode_and_one_of_others_is_refused(
    tmp_path: Path, monkeypatch
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "mine").write_text("")
    Store(tmp_path)
    assert (mode(tmp_path), mode(tmp_path / "files")) == (0o755, 0o700)
    monkeypatch.setattr(store_module.os, "geteuid", lambda: 12345)
    with pytest.raises(EngineError, match=r"belongs to another user\); give another --folder"):
        Store(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(EngineError, match="can't keep bundles"):
        make_folder(tmp_path / "file" / "below")


def test_rob_27_what_is_stored_survives_a_power_cut(tmp_path: Path, monkeypatch) -> None:
    """The disk has the bytes before it has the name, and the name before the client is told."""
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        steps.append(f"-> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    uploaded(tmp_path)
    assert steps == [f"{SHA256}.partial", f"-> {SHA256}", "files"]


@pytest.mark.parametrize("left", [bytes(200), b"", DATA[:100].tobytes()])
def test_rob_27_what_was_damaged_since_it_came_is_sent_again(tmp_path: Path, left: bytes) -> None:
    """A power cut may leave zeros, with the size and time of the file."""
    uploaded(tmp_path)
    file = tmp_path / "files" / SHA256
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    assert Store(tmp_path).missing(WANTED) == {}
    file.write_bytes(left)
    os.utime(file, ns=times)
    assert Store(tmp_path).missing(WANTED) == {SHA256: 0}
    assert uploaded(tmp_path).missing(WANTED) == {}


def test_rob_27_a_damaged_bundle_is_repaired_when_its_client_comes_again(
    tmp_path: Path, tiny_bundle: Any
) -> None:
    bundle = tiny_bundle("MiniCPM4.1-8B", "w4", sparse=NARROW).path
    address, _ = started(tmp_path)
    first = RemoteMachine(address, KEY)
    with Engine(bundle, remote=first, context=64, threads=1) as engine:
        expected = engine.logits([5, 6, 7])
    del engine, first  # it leaves
    for file in (tmp_path / "files").iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    steps: list[tuple[str, int, int]] = []
    again = RemoteMachine(address, KEY, lambda *step: steps.append(step))
    with Engine(bundle, remote=again, context=64, threads=1) as engine:
        np.testing.assert_array_equal(engine.logits([5, 6, 7]), expected)
    assert steps and not [f for f in (tmp_path / "files").iterdir() if mode(f) != 0o600]


def test_a_file_is_read_once_by_a_client_and_a_bundle_needs_all(
    tmp_path: Path, monkeypatch
) -> None:
    uploaded(tmp_path)
    read: list[Path] = []
    monkeypatch.setattr(store_module, "sha256_of", lambda path: read.append(path) or hash_of(path))
    store = Store(tmp_path)
    assert [store.missing(WANTED) for _ in range(3)] == [{}] * 3 and len(read) == 1
    assert store.missing({"0" * 64: 5}) == {"0" * 64: 0}


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_upload_longer_than_its_file_begins_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(SHA256, 0, np.zeros(300, np.uint8))
    assert store.missing(WANTED) == {SHA256: 0}


def test_leftovers_of_long_ago_are_removed_at_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "bundles" / "x").mkdir()
    old = [
        tmp_path / "files" / f"{SHA256}.partial",
        tmp_path / "bundles/x/.manifest.json.partial-7",
    ]
    new = tmp_path / "files" / f"{'0' * 64}.partial"
    for file in (*old, new):
        file.write_bytes(b"abc")
    for file in old:
        os.utime(file, (0, time.time() - 2 * store_module.LEFT_SECONDS))
    remove_leftovers(tmp_path)
    assert [file.exists() for file in (*old, new)] == [False, False, True]
    assert store.missing({"0" * 64: 5}) == {"0" * 64: 3}  # still gone on with


def test_two_servers_with_one_folder_spoil_nothing(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    one.write(SHA256, 0, DATA[:50])
    with pytest.raises(BundleError, match="went on at byte 0, and 50 bytes are here"):
        other.write(SHA256, 0, DATA)
    one.write(SHA256, 50, DATA[50:])
    one.finish(SHA256)
    assert other.missing(WANTED) == {}


def test_a_disk_without_room_is_told_before_anything_is_sent(tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=150)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    store = Store(tmp_path)
    with pytest.raises(BundleError, match=r"has 150\.0 B free; make room there, .*--folder; 200"):
        store.missing(WANTED)
    store.write(SHA256, 0, DATA[:50])
    assert store.missing(WANTED) == {SHA256: 50}  # what is here needs no room


def test_a_disk_that_gets_full_on_the_way_is_told_and_gone_on_with(
    tmp_path: Path, monkeypatch
) -> None:
    store = Store(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.fcntl, "flock", full)
    with pytest.raises(BundleError, match=r"the server's disk has .* free; make room there"):
        store.write(SHA256, 0, DATA)
    monkeypatch.undo()
    assert uploaded(tmp_path).missing(WANTED) == {}


def test_an_error_of_the_disk_comes_to_the_client_as_a_sentence(tmp_path: Path) -> None:
    data = b"some weights"
    address, _ = started(tmp_path / "server")
    machine = RemoteMachine(address, KEY)
    (tmp_path / "weights").write_bytes(data)
    bundle = bundle_of(tmp_path, {"weights": data})
    partial = f"{bundle.manifest.files['weights']['sha256']}.partial"
    (tmp_path / "server" / "files" / partial).symlink_to("/dev/full")  # not followed
    with pytest.raises(BundleError, match="Too many levels of symbolic links"):
        machine.upload(bundle)
    shutil.rmtree(tmp_path / "server" / "bundles")
    (tmp_path / "server" / "bundles").write_text("")
    with pytest.raises(EngineError, match=r"bundles/.* can't keep bundles"):
        machine.call("open", [np.frombuffer(b"{}", np.uint8)], threads=1)
    assert machine.call("hello")[0]["cores"] >= 1
