"""A bundle on another machine, which is this one: the same tokens, one upload, and errors that say
what to do.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import NARROW
from click.testing import CliRunner

from minicpm_mlc import Engine, cli
from minicpm_mlc.base.errors import BundleError, EngineError
from minicpm_mlc.bench.decode import BenchError, bench_bundle
from minicpm_mlc.bundle.kernel_cases import load_cases
from minicpm_mlc.bundle.manifest import Bundle, read_bundle
from minicpm_mlc.runtime_py.device_check import check_device
from minicpm_mlc.runtime_py.rpc import server as server_module
from minicpm_mlc.runtime_py.rpc.client import RemoteLibrary, RemoteMachine, connect
from minicpm_mlc.runtime_py.rpc.message import PROTOCOL, pack, unpack
from minicpm_mlc.runtime_py.rpc.server import run_server
from minicpm_mlc.runtime_py.rpc.store import Store
from minicpm_mlc.runtime_py.verify import verify_bundle

KEY = "a key"
PROMPT = [(31 * i) % 300 for i in range(1, 70)]


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Path:
    return tiny_bundle("MiniCPM4.1-8B", "w4", sparse=NARROW).path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    return started(tmp_path_factory.mktemp("server"))[0]


def started(folder: Path) -> tuple[str, queue.Queue[str]]:
    """HOST:PORT of a new server on loopback, and what else it says."""
    said: queue.Queue[str] = queue.Queue()
    options = {"port": 0, "key": KEY, "folder": folder, "say": said.put}
    threading.Thread(target=run_server, kwargs=options, daemon=True).start()
    return said.get(timeout=60).split()[2].rstrip(";"), said


@pytest.fixture(scope="module")
def remote(server: str) -> Iterator[RemoteMachine]:
    yield RemoteMachine(server, KEY)


@pytest.mark.parametrize("speculate", ["off", "ngram"])
@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_a_remote_engine_says_what_a_local_one_says(bundle, remote, attention, speculate):
    options = {"context": 192, "attention": attention, "threads": 1}
    with Engine(bundle, **options) as here, Engine(bundle, remote=remote, **options) as there:
        for engine in (here, there):
            engine.generate(PROMPT, max_tokens=24, temperature=0, speculate=speculate)
        assert there.cached_tokens == here.cached_tokens
        np.testing.assert_array_equal(there.logits(PROMPT), here.logits(PROMPT))


def test_files_travel_once(bundle, remote):
    steps: list[tuple[str, int, int]] = []
    manifest = read_bundle(bundle).manifest
    again = connect_beside(remote, lambda *step: steps.append(step))
    remote.upload(Bundle(bundle, manifest))
    again.upload(Bundle(bundle, manifest))
    assert steps == []


def connect_beside(remote: RemoteMachine, progress: Any) -> RemoteMachine:
    """The same connection with another progress: the server takes one client at a time."""
    beside = object.__new__(RemoteMachine)
    beside.__dict__.update(remote.__dict__, _progress=progress)
    return beside


def test_progress_is_reported_and_a_broken_upload_goes_on(remote, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8).tobytes()
    (tmp_path / "weights").write_bytes(data)
    bundle = bundle_of(tmp_path, {"weights": data})
    half = np.frombuffer(data[: 1 << 20], np.uint8)
    sha256 = bundle.manifest.files["weights"]["sha256"]
    remote.call("write", [half], sha256=sha256, offset=0)
    steps: list[tuple[str, int, int]] = []
    connect_beside(remote, lambda *step: steps.append(step)).upload(bundle)
    assert steps == [("upload", 2 << 20, 3 << 20), ("upload", 3 << 20, 3 << 20)]
    assert remote.call("missing", wanted={sha256: len(data)})[0] == {"missing": {}}


def bundle_of(folder: Path, files: dict[str, bytes]) -> Any:
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    return SimpleNamespace(path=folder, manifest=SimpleNamespace(files=entries))


def test_what_is_not_what_was_announced_is_thrown_away(tmp_path):
    store, wrong = Store(tmp_path), "0" * 64
    store.write(wrong, 0, np.zeros(3, np.uint8))
    assert store.missing({wrong: 9}) == {wrong: 3}
    with pytest.raises(BundleError, match="went on at byte 7, and 3 bytes are here"):
        store.write(wrong, 7, np.zeros(3, np.uint8))
    with pytest.raises(BundleError, match="damaged on its way"):
        store.finish(wrong)
    assert store.missing({wrong: 9}) == {wrong: 0}
    for name in ("../../etc/passwd", "x" * 64, ""):
        with pytest.raises(BundleError, match="is no SHA-256"):
            store.write(name, 0, np.zeros(1, np.uint8))


def test_verify_runs_every_kernel_there(bundle, remote, server):
    report = verify_bundle(bundle, remote=remote, threads=1)
    assert report.failed == [] and report.device.endswith(f"at {server}")
    assert {case.operator for case in load_cases(bundle)} < {row.operator for row in report.rows}
    assert report.tokens == verify_bundle(bundle, threads=1).tokens


def test_the_quick_check_runs_there(bundle, remote, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Engine(bundle, remote=remote, context=64, threads=1) as engine:
        assert isinstance(engine.library, RemoteLibrary)
        check_device(engine)
    (remembered,) = (tmp_path / "minicpm-mlc" / "devices").iterdir()
    assert remote.address in json.loads(remembered.read_text())["device"]


def test_bench_measures_there(bundle, remote, server):
    report = bench_bundle(
        bundle, depths=[16], prompt_tokens=[32], new_tokens=4, repeats=1, threads=1, remote=remote
    )
    assert [row.phase for row in report.rows] == ["prefill", "decode"]
    assert report.bandwidth is None and report.command.endswith(f"--rpc {server}")
    with pytest.raises(BenchError, match="--random-cache"):
        bench_bundle(bundle, random_cache=True, remote=remote)


def test_errors_come_back_as_themselves(bundle, remote, monkeypatch):
    with pytest.raises(BundleError, match="is no SHA-256"):
        remote.call("missing", wanted={"nonsense": 1})
    for method in ("_answer", "__init__", "no_such_thing"):
        with pytest.raises(EngineError, match="the server knows no"):
            remote.call(method)
    with pytest.raises(EngineError, match="failed at new_pools"):
        remote.call("new_pools", library=999, pages=1, draft=False)
    assert remote.call("hello")[0]["protocol"] == PROTOCOL  # and the connection lives on
    monkeypatch.setattr(remote, "host", type(remote.host)("android", "aarch64", None))
    with pytest.raises(BundleError, match="can't run"):
        remote.read_bundle(bundle)


def test_strangers_and_nonsense_are_refused_with_what_to_do(server):
    with pytest.raises(EngineError, match="expected HOST:PORT"):
        connect("localhost", KEY)
    for port in (0, 70000):
        with pytest.raises(
            EngineError, match=f"--rpc 127.0.0.1:{port}: port {port} is none of 1 to 65535"
        ):
            connect(f"127.0.0.1:{port}", KEY)
    with pytest.raises(EngineError, match="--port 99999: expected 0 to 65535"):
        run_server(port=99999)
    with pytest.raises(EngineError, match="belong together"):
        connect(server, None)
    with pytest.raises(
        EngineError, match=r"no connection to 127\.0\.0\.1:9 .*minicpm-mlc rpc-server"
    ):
        connect("127.0.0.1:9", KEY)
    result = CliRunner().invoke(
        cli.main, ["bench", "B", "--operators", "--rpc", server, "--key", KEY]
    )
    assert result.exit_code == 2 and "bench --operators does not use --rpc, --key" in result.stderr


def test_a_wrong_key_gets_no_session(tmp_path):
    address, said = started(tmp_path)
    assert address.startswith("127.0.0.1:")
    with pytest.raises(EngineError, match=r"no connection to .* with this key"):
        RemoteMachine(address, "another")
    assert said.get(timeout=60) == "a wrong key from 127.0.0.1"
    assert said.empty() and not list(tmp_path.iterdir())


def test_a_second_client_is_told_that_the_server_is_busy_and_the_next_is_served(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(server_module, "LEAVING_SECONDS", 0.01)
    address, _ = started(tmp_path)
    first = RemoteMachine(address, KEY)
    for _ in range(2):
        with pytest.raises(EngineError, match=f"{address} is busy with another client; .*--port"):
            RemoteMachine(address, KEY)
    assert first.call("hello")[0]["protocol"] == PROTOCOL  # undisturbed
    monkeypatch.setattr(server_module, "LEAVING_SECONDS", 60)
    del first
    assert RemoteMachine(address, KEY).cores >= 1


def test_messages_keep_values_and_arrays():
    arrays = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.zeros((0, 4), np.float32),
        np.float32(3) * np.ones(()),
    ]
    values, back = unpack(pack({"a": [1, None, "é"]}, arrays))
    assert values == {"a": [1, None, "é"]}
    for array, other in zip(arrays, back, strict=True):
        assert array.dtype == other.dtype and array.shape == other.shape
        np.testing.assert_array_equal(array, other)
    back[0][0, 0] = 7  # its own memory
