from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minicpm_mlc.bench import decode as bench
from minicpm_mlc.bench.decode import (
    BenchError,
    GearSide,
    Stopwatch,
    measure,
    run_bench,
    with_traffic,
)
from minicpm_mlc.bench.speed_report import SpeedReport, SpeedRow
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.memory_reader import MemoryReader
from minicpm_mlc.runtime_py.roofline import Roofline
from minicpm_mlc.runtime_py.spent import Spent
from minicpm_mlc.runtime_py.traffic import Traffic


class FakeModel:
    """Takes 1 ms per prefilled token and 10 ms + 1 us per cached token for a decoded one, on a
    clock of its own.
    """

    def __init__(self, clock: list[float], calls: list[tuple] | None = None, name: str = ""):
        self.clock, self.calls, self.name = clock, calls if calls is not None else [], name
        self.length, self.logits = 0, [[0.0]]

    def prefill(self, token_ids) -> object:
        assert all(0 <= token_id < 100 for token_id in token_ids)
        self.calls.append((self.name, "prefill", self.length, len(token_ids)))
        self.clock[0] += 1e-3 * len(token_ids)
        self.length += len(token_ids)
        return self.logits

    def decode(self, token_id):
        self.calls.append((self.name, "decode", self.length, 1))
        self.length += 1
        self.clock[0] += 1e-2 + 1e-6 * self.length

    def greedy(self, token_id):
        return self.decode(token_id)

    def truncate(self, length):
        assert length <= self.length
        self.length = length


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    return now


def test_speeds_are_those_of_the_depth(clock):
    rows = run_bench(
        FakeModel(clock), 100, Traffic(0, 0), [4096, 0], prompt_tokens=[32], new_tokens=8, repeats=3
    )
    assert [(row.phase, row.depth) for row in rows] == [
        ("prefill", 0),
        ("decode", 0),
        ("prefill", 4096),
        ("decode", 4096),
    ]
    assert [row.tokens_per_second for row in rows if row.phase == "prefill"] == pytest.approx(
        [1000, 1000]
    )
    decode = [row.tokens_per_second for row in rows if row.phase == "decode"]
    assert decode == pytest.approx([1 / (1e-2 + 1e-6 * (depth + 4.5)) for depth in (0, 4096)])
    assert all(len(row.samples) == 3 for row in rows)


def test_every_repeat_starts_at_the_depth_and_the_cache_is_filled_once(clock):
    model = FakeModel(clock)
    run_bench(model, 100, Traffic(0, 0), [0, 100, 300], prompt_tokens=[32], new_tokens=2, repeats=4)
    timed = [
        length for _, call, length, tokens in model.calls if call == "prefill" and tokens == 32
    ]
    assert timed == [0] * 4 + [100] * 4 + [300] * 4
    fills = [
        (length, tokens)
        for _, call, length, tokens in model.calls
        if call == "prefill" and tokens > 32
    ]
    assert fills == [(0, 100), (100, 200)]


def test_sides_take_turns(clock):
    calls: list[tuple] = []
    sides = {name: Stopwatch(FakeModel(clock, calls, name), 100) for name in ("a", "b")}
    rows = measure(sides, [0], prompt_tokens=[32], new_tokens=1, repeats=3)
    assert [name for name, call, _, tokens in calls if call == "prefill" and tokens == 32] == list(
        "ababab"
    )
    assert [row.phase for row in rows["b"]] == ["prefill", "decode"]


def test_gears_take_turns_on_one_cache_and_are_shifted_to_before_the_clock_starts(clock):
    calls: list[tuple] = []

    class Engine(FakeModel):
        vocab_size = 100
        library = SimpleNamespace(local=None)

        def shift(self, attention):
            self.clock[0] += 5.0  # must not be measured
            self.name = attention

        @property
        def cached_tokens(self):
            return [0] * self.length

    engine: Any = Engine(clock, calls)
    sides = {gear: GearSide(engine, gear) for gear in ("sparse", "dense")}
    rows = measure(sides, [64, 128], prompt_tokens=[32], new_tokens=1, repeats=2)
    assert [
        row.tokens_per_second for row in rows["dense"] if row.phase == "prefill"
    ] == pytest.approx([1000, 1000])
    timed = [
        (name, length) for name, call, length, tokens in calls if call == "prefill" and tokens == 32
    ]
    assert timed == [("sparse", 64), ("dense", 64)] * 2 + [("sparse", 128), ("dense", 128)] * 2
    fills = [
        (name, length, tokens)
        for name, call, length, tokens in calls
        if call == "prefill" and tokens == 64
    ]
    assert fills == [("sparse", 0, 64), ("sparse", 64, 64)], "the cache is filled once"


@pytest.mark.parametrize(
    ("device", "parts"),
    [
        ("cpu", {"kernels": 0.75, "host": 0.25}),
        ("cuda", {"kernels": 0.25, "launches": 0.5, "host": 0.25}),
    ],
)
def test_a_decode_tells_where_its_time_went_without_the_call_that_warms_up(clock, device, parts):
    spent = Spent()

    class Engine(FakeModel):
        vocab_size = 100
        library = SimpleNamespace(local=SimpleNamespace(spent=spent))
        manifest = SimpleNamespace(target={"device": device})

        def shift(self, attention):
            pass

        def decode(self, token_id):
            self.length += 1
            self.clock[0] += 4.0
            spent.called += 2.0 if spent.called else 4.0  # the first one warms up
            spent.waited += 1.0

    engine: Any = Engine(clock)
    side = GearSide(engine, "dense")
    for _ in range(3):
        side.decode_seconds(1)
    assert side.parts(0) == parts and not side.parts(7)


def test_an_answer_is_held_against_what_memory_allows():
    found = Roofline(20e9, 2.0, 40e9, Spent(1.5, 0.1).shares(2.0, in_process=False))
    assert found.share == 0.25
    assert found.text() == (
        "decode ran at 25% of the 40.0 GB/s that memory gives; "
        "its time: kernels 5%, launches 75%, host 20%"
    )


def test_both_sides_are_fed_the_same_tokens(clock):
    fed: dict[str, list] = {"a": [], "b": []}

    class Recorder(FakeModel):
        def prefill(self, token_ids):
            fed[self.name].append(list(token_ids))
            super().prefill(token_ids)

    sides = {name: Stopwatch(Recorder(clock, None, name), 100) for name in fed}
    measure(sides, [0, 5], prompt_tokens=[7], new_tokens=1, repeats=2)
    assert fed["a"] == fed["b"] != []


def test_a_phase_of_no_tokens_is_left_out_and_several_prompts_are_rows(clock):
    sides = {"": Stopwatch(FakeModel(clock), 100)}
    rows = measure(sides, [0], prompt_tokens=[8, 16], new_tokens=0, repeats=1)[""]
    assert [(row.phase, row.tokens) for row in rows] == [("prefill", 8), ("prefill", 16)]
    assert [row.phase for row in measure(sides, [0], [0], new_tokens=1, repeats=1)[""]] == [
        "decode"
    ]


def test_a_filler_brings_the_cache_to_its_depth_without_computing_tokens(clock):
    model = FakeModel(clock)

    def fill(depth: int) -> None:
        model.length = depth

    rows = run_bench(
        model, 100, Traffic(0, 0), [500], prompt_tokens=[32], new_tokens=2, repeats=1, filler=fill
    )
    assert [row.depth for row in rows] == [500, 500]
    assert {length for _, call, length, _ in model.calls if call == "prefill"} == {500}


def test_logits_leave_the_cache_as_it_was(clock):
    model = FakeModel(clock)
    model.logits = [[1.0, 2.0]]
    side = Stopwatch(model, 100)
    side.fill(3)
    assert side.logits(5).tolist() == [1.0, 2.0]
    assert model.length == 3


def test_decode_traffic_is_the_weights_and_the_cache_read_by_the_average_step():
    row = with_traffic(
        SpeedRow("decode", 1000, 9, (10.0, 20.0, 30.0)), Traffic(weights=10**9, kv_per_token=1000)
    )
    assert row.gb_per_second == pytest.approx(20 * (1e9 + 1000 * 1005) / 1e9)


def test_prefill_has_no_traffic():
    assert with_traffic(SpeedRow("prefill", 0, 9, (1.0,)), Traffic(1, 1)).gb_per_second is None


@pytest.mark.parametrize(
    ("phase", "depth", "attention"),
    [
        ("prefill", 91, "dense"),
        ("prefill", 92, "sparse"),  # a prompt runs in the gear of its last token
        ("decode", 91, "dense"),
        ("decode", 92, "dense, sparse"),
        ("decode", 99, "sparse"),
    ],
)
def test_rows_say_which_gear_ran(phase, depth, attention):
    traffic = Traffic(1, 1, Gears("auto", dense_len=100, budget=6, block_size=64))
    assert with_traffic(SpeedRow(phase, depth, 8, (1.0,)), traffic).attention == attention
    assert with_traffic(SpeedRow(phase, depth, 8, (1.0,)), Traffic(1, 1)).attention == "dense"


REPORT = SpeedReport(
    "M",
    "w4",
    "some cpu",
    2,
    600,
    "minicpm-mlc bench M",
    40e9,
    [
        SpeedRow("prefill", 0, 512, (100.0, 300.0, 200.0), None, "dense"),
        SpeedRow("decode", 0, 64, (10.0,), 20.0, "sparse"),
    ],
)


def test_table_shows_the_median_and_the_share_of_bandwidth():
    lines = REPORT.plain().splitlines()
    assert "M w4 on some cpu, 2 threads, context 600" in lines[0] and "40.0 GB/s" in lines[0]
    assert lines[1] == "minicpm-mlc bench M"
    assert lines[4].split() == ["prefill", "dense", "0", "512", "200.0", "100.0", "300.0"]
    assert lines[5].split() == [
        "decode",
        "sparse",
        "0",
        "64",
        "10.0",
        "10.0",
        "10.0",
        "20.0",
        "50%",
    ]


def test_markdown_holds_the_same_cells():
    body = [line for line in REPORT.markdown().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in body[3].strip("|").split("|")] == REPORT.cells()[2]
    assert len({line.count("|") for line in body}) == 1


def test_json_holds_every_sample():
    data = json.loads(REPORT.json())
    assert data["rows"][0]["samples"] == [100.0, 300.0, 200.0]
    assert data["rows"][0]["tokens_per_second"] == 200.0
    assert [row["attention"] for row in data["rows"]] == ["dense", "sparse"]
    assert data["bandwidth"] == 40e9 and data["command"] == "minicpm-mlc bench M"


@pytest.mark.parametrize(
    "options",
    [
        {"depths": []},
        {"depths": [-1]},
        {"prompt_tokens": [-1]},
        {"new_tokens": -1},
        {"repeats": 0},
        {"threads": 0},
        {"prompt_tokens": [0], "new_tokens": 0},
    ],
)
def test_impossible_requests_are_refused_by_option_before_anything_is_opened(options):
    option = next(iter(options)).replace("_", "-").removesuffix("s")
    with pytest.raises(BenchError, match=f"--{option}"):
        bench.bench_bundle("no bundle here", **options)


def test_room_is_enough_for_everything_measured(clock):
    model = FakeModel(clock)
    run_bench(model, 100, Traffic(0, 0), [0, 50], prompt_tokens=[3], new_tokens=5, repeats=1)
    assert max(length + tokens for _, _, length, tokens in model.calls) <= bench.room_needed(
        [0, 50], [3], 5
    )


def test_memory_is_as_fast_as_the_best_sample_and_its_kernel_gets_the_whole_buffer(clock):
    seen: list[np.ndarray] = []

    def read(x: Any, sums: Any) -> None:
        seen.append(np.from_dlpack(x))
        clock[0] += 0.02 / len(seen)

    reader = MemoryReader(read, nbytes=1 << 20)
    reader.sample()
    first = reader.best
    reader.sample(2)
    assert 0 < first <= 2**20 / 0.02 < reader.best
    assert len(seen) == 3 and seen[0].nbytes == 1 << 20 and seen[0].all()
