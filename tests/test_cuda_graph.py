"""The calls of an answer on CUDA, one launch each, on stand-ins for the driver that count them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cuda_stand_in as stand_in
import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from draft_heads import EAGLE3, write_draft

from minicpm_mlc.runtime_py.allocator import called, disturbances, disturbed, seen
from minicpm_mlc.runtime_py.device_rows import DeviceRows
from minicpm_mlc.runtime_py.device_steps import LEAST_WIDTH, bucket, padded
from minicpm_mlc.runtime_py.sampler import likeliest

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


def test_a_call_moves_memory_the_first_time_a_thread_makes_it_until_memory_is_given_back():
    counts = [disturbances()]
    for call in ("a", "a", "b", "a"):
        called(call)
        counts.append(disturbances() - counts[0])
    assert counts[1:] == [1, 1, 2, 2] and seen("a")
    elsewhere: list[bool] = []
    thread = threading.Thread(target=lambda: elsewhere.append(seen("a")))
    thread.start()
    thread.join()
    assert elsewhere == [False]
    disturbed()
    assert not seen("a")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return stand_in.build(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model for CUDA with a draft head, its kernels' code left out: the stand-ins run
    none.
    """
    from minicpm_mlc.compile import compile_model

    folder = tmp_path_factory.mktemp("cuda")
    config = tiny_config("MiniCPM4.1-8B", num_layers=2)
    write_checkpoint(folder / "source", config, dtype="f32")
    write_draft(folder / "head", config, EAGLE3, vocab=100, feature_layers=(0, 1, 1))
    options = {"device": "cuda", "arch": "sm_90", "scheme": "f32", "draft": folder / "head"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicpm_mlc.targets.cuda.fat_binary", lambda *_: b"no code")
        compile_model(folder / "source", folder / "bundle", **options)
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
seen = asked(lambda: engine.prefill([5] * 3)), [asked(lambda: engine.greedy(5)) for _ in range(2)]
print(json.dumps([steps, logits, sparse, again, seen[1]]))
""",
    )
    steps, logits, sparse, again, seen = found
    one = {"graph launches": 1, "waits": 1}
    assert steps[0]["launches"] > 15 and "graph launches" not in steps[0]
    assert steps[1]["recordings"] == 1 and "launches" not in steps[1]
    assert steps[1]["mallocs"] == 4, "for its arguments"
    assert steps[2:] == [one] * 3
    assert logits[0] == one | {"copies": 1, "waits": 2, "pinned": 1}
    assert logits[1] == one | {"copies": 1}, "they were on their way before they were read"
    assert sparse[2:] == [one] * 3
    prompt, after = again
    assert prompt["launches"] and after[0]["recordings"] == 1 and after[1:] == [one] * 2
    assert seen == [one] * 2, "a prompt of a length that was there before moves nothing"


def test_a_tree_a_draft_and_a_commit_are_one_launch_each(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
from minicpm_mlc.runtime_py.draft_model import DraftModel
engine.prefill([5] * 10)
model = engine.model
head = DraftModel(model.cache, model.sequence)
def once(nodes):
    proposed = []
    calls = {
        "extend": lambda: proposed.append(head.extend(5, model.features)),
        "step": lambda: head.step([1, 2, 3, 4], proposed[0].hidden.repeat(4, 0), [-1] * 4),
        "verify": lambda: model.verify([5] * nodes, range(-1, nodes - 1)),
        "commit": lambda: model.commit(range(3)),
    }
    return {name: asked(call) for name, call in calls.items()}
rounds = [once(16) for _ in range(5)]
few = [once(8) for _ in range(4)]
read = [asked(lambda: np.asarray(model.verify([5] * 8, range(-1, 7))[0])) for _ in range(2)]
engine.shift("sparse")
sparse = [once(16) for _ in range(4)]
print(json.dumps([rounds, few, read, sparse]))
""",
    )
    rounds, few, read, sparse = found
    one = {"graph launches": 1, "waits": 1}
    all_once = {"extend": one, "step": one, "verify": one, "commit": {"graph launches": 1}}
    assert all(call["launches"] for call in rounds[0].values())
    assert rounds[-1] == few[-1] == sparse[-1] == all_once
    assert read[0] == one | {"copies": 1, "waits": 2, "pinned": 1}
    assert read[1] == one | {"copies": 1}


def test_a_draft_from_root_to_tree_is_one_launch(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
from minicpm_mlc.runtime_py.draft_model import DraftModel
engine.prefill([5] * 10)
head = DraftModel(engine.model.cache, engine.model.sequence)
features = np.zeros((10, engine.model.features.shape[1]), np.float32)
head.extend(7, features)
def grow(rows, levels):
    return asked(lambda: head.grow(7, features[:rows], levels, 4, 0.5))
first = [grow(3, 5) for _ in range(3)]
deeper = [grow(3, 6) for _ in range(2)]
fewer = [grow(2, 6) for _ in range(3)]
again = grow(3, 5)
print(json.dumps([first, deeper, fewer, again]))
""",
    )
    first, deeper, fewer, again = found
    one = {"graph launches": 1, "waits": 1}
    assert first[0]["launches"] > 50 and first[1]["recordings"] == 1 and first[2] == one
    assert deeper[0]["recordings"] == 1, "more of the same levels need no other memory"
    assert deeper[1] == one
    assert fewer[0]["launches"] and fewer[1]["recordings"] == 1 and fewer[2] == one
    assert again["recordings"] == 1, "the call of 2 rows may have moved what this one works with"


def test_what_was_recorded_is_dropped_where_memory_runs_out(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
import ctypes
from minicpm_mlc.runtime_py.ffi import tvm_ffi
refused = ctypes.c_int.in_dll(ctypes.CDLL("libcudart.so.13"), "stand_in_refuses")
clear = tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")
for _ in range(2):
    engine.prefill([5] * 3)
steps = [asked(lambda: engine.greedy(5)) for _ in range(3)]
def run_out():
    clear()  # as if other engines held all that there is
    refused.value = 6  # the arguments of a prompt are there
    engine.prefill([5] * 3)
asked(run_out)
after = [asked(lambda: engine.greedy(5)) for _ in range(3)]
print(json.dumps([steps, refused.value, after]))
""",
    )
    steps, refused, after = found
    one = {"graph launches": 1, "waits": 1}
    assert steps[-1] == one and not refused
    assert "graph launches" not in after[0] and after[0]["launches"] and after[-1] == one


def test_a_recording_during_which_memory_runs_out_is_not_launched(
    bundle: Path, drivers: dict[str, str]
):
    found = run(
        bundle,
        drivers,
        """
import ctypes
from minicpm_mlc.runtime_py.ffi import tvm_ffi
refused = ctypes.c_int.in_dll(ctypes.CDLL("libcudart.so.13"), "stand_in_refuses")
engine.prefill([5] * 3)
engine.greedy(5)
tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
def step():
    refused.value = 5  # the arguments are there, the first tensor of the step is not
    engine.greedy(5)
steps = [asked(step), *(asked(lambda: engine.greedy(5)) for _ in range(3))]
print(json.dumps([steps, refused.value]))
""",
    )
    (first, *_, last), refused = found
    assert first["recordings"] == 1 and first["launches"] and "graph launches" not in first
    assert last == {"graph launches": 1, "waits": 1} and not refused


def test_what_a_token_is_drawn_from_comes_with_the_step(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
engine.prefill([5] * 10)
def drawn(rows):
    assert all(row.few(0.8) is not None for row in rows)
model = engine.model
steps = [asked(lambda: drawn([model.step(5)])) for _ in range(5)]
tree = lambda: drawn(list(model.verify([5] * 4, range(-1, 3))[0]))
trees = [asked(tree) for _ in range(5)]
print(json.dumps([steps, trees]))
""",
    )
    steps, trees = found
    assert "copies" not in steps[-1], "the logits stay on the device"
    assert steps[-1] == trees[-1] == {"graph launches": 2, "waits": 1}


def test_a_drafts_numbers_pass_through_the_graph(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
from minicpm_mlc.runtime_py.draft_model import DraftModel
engine.prefill([5] * 10)
head = DraftModel(engine.model.cache, engine.model.sequence)
features = np.arange(10 * engine.model.features.shape[1], dtype=np.float32).reshape(10, -1)
for _ in range(3):
    head.extend(7, features)
library = engine.library.local
(recorded,) = library._steps._recordings.graphs.values()
values = [library.memory.array(tensor) for tensor in recorded.graph._arguments]
same = (values[1] == features).all() and values[0].tolist() == [5] * 9 + [7]
print(json.dumps(bool(same)))
""",
    )
    assert found


def test_arguments_and_results_pass_through_the_graph(bundle: Path, drivers: dict[str, str]):
    found = run(
        bundle,
        drivers,
        """
engine.prefill([5] * 10)
for _ in range(3):
    engine.greedy(5)
steps = engine.library.local._steps
(recorded,) = steps._recordings.graphs.values()
graph, memory = recorded.graph, engine.library.local.memory
import ctypes
ids = ctypes.cast(graph._results.copied[0].data_ptr(), ctypes.POINTER(ctypes.c_int32))
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
(recorded,) = engine.library.local._steps._recordings.graphs.values()
logits = ctypes.cast(recorded.graph._results.logits.data_ptr(), ctypes.POINTER(ctypes.c_float))
held = model.step(5)
logits[3] = 1.5
model.step(5)
logits[3] = 2.5
last = float(np.asarray(model.step(5))[3])
engine.prefill([5] * 7)
plain = engine.model.verify([5] * 3, range(-1, 2))[0]
model.step(5)
print(json.dumps([float(np.asarray(held)[3]), last, plain._fetch is None]))
""",
    )
    assert found == [1.5, 2.5, True], "what a plain call left there too"


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
    assert all(step["launches"] > 15 for step in steps) and "recordings" not in steps[3]
    assert "cudaStreamBeginCapture: refused by the stand-in" in note
