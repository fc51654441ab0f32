"""Decode steps on CUDA as one launch, on stand-ins for the driver that count what is asked."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint

from minicpm_mlc.runtime_py.device_decode import LEAST_WIDTH, bucket, padded
from minicpm_mlc.runtime_py.device_rows import DeviceRows
from minicpm_mlc.runtime_py.sampler import likeliest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
stand_in = importlib.import_module("cuda_stand_in")
BENCH = Path(__file__).parents[1] / "bench"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stand-ins are Linux libraries")


def test_page_tables_widen_by_an_eighth_at_most():
    widths = [bucket(pages) for pages in range(1, 5000)]
    assert widths == sorted(widths) and widths[0] == LEAST_WIDTH
    assert all(
        pages <= width <= max(LEAST_WIDTH, pages * 1.125 + 1)
        for pages, width in enumerate(widths, 1)
    )
    assert len(set(widths)) < 80
    np.testing.assert_array_equal(padded(np.array([[3, 1]], np.int32), 4), [[3, 1, 0, 0]])


def test_logits_travel_once_and_only_when_they_are_read():
    fetched: list[int] = []
    logits = np.array([[1, 5, 5], [2, 1, 0]], np.float32)

    def fetch() -> np.ndarray:
        fetched.append(1)
        return logits

    rows = DeviceRows(fetch, np.array([1, 0], np.int32), np.array([5, 2], np.float32), 24)
    assert [likeliest(row) for row in rows] == [1, 0] and len(rows) == 2 and not fetched
    np.testing.assert_array_equal(np.asarray(rows[0]), logits[0])
    np.testing.assert_array_equal(rows, logits)
    assert rows[1][2] == 0 and fetched == [1]
    with pytest.raises(IndexError):
        rows[2]


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return stand_in.build(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model for CUDA, its kernels' code left out: the stand-ins run none."""
    from minicpm_mlc.compile import compile_model

    folder = tmp_path_factory.mktemp("cuda")
    config = tiny_config("MiniCPM4.1-8B", num_layers=2)
    write_checkpoint(folder / "source", config, dtype="f32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicpm_mlc.targets.cuda.fat_binary", lambda *_: b"no code")
        compile_model(
            folder / "source", folder / "bundle", device="cuda", arch="sm_90", scheme="w4"
        )
    return folder / "bundle"


def run(bundle: Path, drivers: dict[str, str], code: str, **more: str) -> Any:
    """What a process prints as JSON: `engine` and `counts` are there."""
    head = f"""
import json, sys
sys.path.insert(0, {str(BENCH)!r})
import numpy as np
from cuda_stand_in import counts
from minicpm_mlc import Engine
engine = Engine({str(bundle)!r}, context=400)
def asked(call):
    before = counts()
    call()
    more = {{name: count - before[name] for name, count in counts().items()}}
    return {{name: count for name, count in more.items() if count}}
"""
    done = subprocess.run(
        [sys.executable, "-c", head + code], env=drivers | more, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_step_is_one_launch_and_one_wait(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
engine.prefill([5] * 10)
steps = [asked(lambda: engine.greedy(5)) for _ in range(5)]
logits = [asked(lambda: engine.decode(5)) for _ in range(2)]
engine.shift("sparse")
sparse = [asked(lambda: engine.greedy(5)) for _ in range(5)]
again = asked(lambda: engine.prefill([5] * 3)), [asked(lambda: engine.greedy(5)) for _ in range(3)]
print(json.dumps([steps, logits, sparse, again[1]]))
""",
    )
    steps, logits, sparse, again = found
    one = {"graph launches": 1, "waits": 1}
    assert steps[0]["launches"] > 20 and "graph launches" not in steps[0]
    assert steps[1]["recordings"] == 1 and "launches" not in steps[1]
    assert steps[1]["mallocs"] == 4, "for its arguments"
    assert steps[2:] == [one] * 3
    assert logits[0] == one | {"copies": 1, "waits": 2, "pinned": 1}
    assert logits[1] == one | {"copies": 1}, "they were on their way before they were read"
    assert sparse[2:] == [one] * 3
    assert again[0]["launches"] and again[1]["recordings"] == 1 and again[2] == one


def test_arguments_and_results_pass_through_the_graph(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
engine.prefill([5] * 10)
for _ in range(3):
    engine.greedy(5)
decoder = engine.library.local._decoder
(recorded,) = decoder._recordings.graphs.values()
graph, memory = recorded.graph, engine.library.local.memory
import ctypes
ids = ctypes.cast(graph._results.ids.data_ptr(), ctypes.POINTER(ctypes.c_int32))
ids[0] = 77
token = engine.greedy(6)
values = [memory.array(tensor).ravel().tolist() for tensor in graph._arguments]
print(json.dumps([token, values, len(engine.cached_tokens)]))
""",
    )
    token, (ids, positions, slots, table), cached = found
    assert token == 77 and ids == [6] and positions == slots == [13] and cached == 14
    assert len(table) == LEAST_WIDTH or len(table) == 7


def test_held_logits_stay_what_they_were(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
import ctypes
engine.prefill([5] * 10)
for _ in range(3):
    engine.greedy(5)
model = engine.model
(recorded,) = engine.library.local._decoder._recordings.graphs.values()
logits = ctypes.cast(recorded.graph._results.logits.data_ptr(), ctypes.POINTER(ctypes.c_float))
held = model.step(5)
logits[3] = 1.5
model.step(5)
logits[3] = 2.5
print(json.dumps([float(np.asarray(held)[3]), float(np.asarray(model.step(5))[3])]))
""",
    )
    assert found == [1.5, 2.5]


def test_where_cuda_records_nothing_steps_are_plain_and_it_is_said(
    bundle: Path, drivers: dict[str, str]
):
    found = run(
        bundle,
        drivers,
        """
engine.prefill([5] * 10)
steps = [asked(lambda: engine.greedy(5)) for _ in range(4)]
print(json.dumps([steps, engine.library.local.steps_note]))
""",
        STAND_IN_REFUSES_GRAPHS="1",
    )
    steps, note = found
    assert all(step["launches"] > 20 for step in steps) and "recordings" not in steps[3]
    assert "cudaStreamBeginCapture: refused by the stand-in" in note
