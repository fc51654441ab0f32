"""The operator table of a decode step, on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import NARROW

from minicpm_mlc import Engine
from minicpm_mlc.bench import decode as bench
from minicpm_mlc.bench.decode import BenchError
from minicpm_mlc.bench.operators import (
    WAITING,
    OperatorCall,
    OperatorReport,
    OperatorRow,
    aggregate,
    bench_operators,
    decode_operators,
    observe,
    prefill_operators,
    records_of,
)
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.ops.operator import Cost
from minicpm_mlc.ops.rms_norm import RmsNorm, RmsNormInt8


@pytest.fixture
def engine(tiny_bundle):
    with Engine(
        tiny_bundle("MiniCPM4.1-8B", "w4", sparse=NARROW).path, context=640, threads=1
    ) as opened:
        yield opened


def test_every_weight_is_counted_once_in_a_step(engine):
    fill_cache(engine, 100)
    seconds, rows = decode_operators(engine, repeats=2)
    linears = [row for row in rows if row.operator.startswith("linear")]
    c = engine.manifest.model
    widths = {"q": c["num_heads"] * c["head_dim"], "kv": 2 * c["num_kv_heads"] * c["head_dim"]}
    layer = c["hidden_size"] * (2 * widths["q"] + widths["kv"] + 3 * c["intermediate_size"])
    head = c["hidden_size"] * -(-c["vocab_size"] // 16) * 16
    assert sum(row.operations for row in linears) == 2 * (c["num_layers"] * layer + head)
    weights = (c["num_layers"] * layer + head) * (
        1 / 2 + 2 / 32
    )  # nibbles, and an f16 scale per 32
    assert (
        weights < sum(row.bytes for row in linears) < 1.3 * weights
    )  # and the activations, here not small
    assert 0 < sum(row.seconds for row in rows) and seconds > 0


@pytest.mark.parametrize(("depth", "read", "present"), [(100, 2, 2), (500, 4, 8)])
def test_attention_is_counted_by_the_pages_its_gear_reads(engine, depth, read, present):
    fill_cache(engine, depth)
    _, rows = decode_operators(engine, repeats=1)
    c = engine.manifest.model
    attend = next(row for row in rows if row.operator.startswith("attend"))
    assert attend.shape == f"{read} of {present} pages"
    assert attend.operations == c["num_layers"] * 4 * c["num_heads"] * c["head_dim"] * read * 64
    assert any(row.operator.startswith("score") for row in rows) == (read < present)


def test_attention_of_a_prefill_counts_every_row(engine):
    fill_cache(engine, 64)
    _, rows = prefill_operators(engine, 64, repeats=1)
    c = engine.manifest.model
    attend = next(row for row in rows if row.operator == "attend_prefill")
    page = 4 * c["num_heads"] * c["head_dim"] * 64
    assert attend.operations == c["num_layers"] * 64 * 2 * page


def test_a_bundle_measures_memory_with_its_own_kernel(engine):
    reader = bench.memory_reader(engine.library)
    assert reader is not None
    reader.sample()
    assert 1e8 < reader.best < 1e13


def test_watching_ends_with_the_step_and_leaves_the_model_as_it_was(engine):
    fill_cache(engine, 40)
    before = engine.decode(7)
    engine.truncate(40)
    names: list[str] = []
    assert len(
        observe(engine, lambda: engine.decode(7), lambda name, args: names.append(name))
    ) == len(names)
    engine.truncate(40)
    watched = len(names)
    assert np.array_equal(engine.decode(7), before) and len(names) == watched
    assert len(engine.cached_tokens) == 41


def test_threads_that_wait_are_a_row_and_no_part_of_operators(engine, monkeypatch):
    fill_cache(engine, 40)
    monkeypatch.setattr(engine.library, "waited", lambda measure: 5.0)
    waits: list[float] = []
    seconds = observe(engine, lambda: engine.decode(7), waits=waits)
    engine.truncate(40)
    assert len(waits) > len(seconds) and set(waits) == {5.0}  # those of shapes are there too
    assert all(-5 < each < -4 for each in seconds)
    monkeypatch.undo()
    _, rows = decode_operators(engine, repeats=1)
    (row,) = (row for row in rows if row.operator == WAITING)
    assert 0 <= row.seconds < sum(each.seconds for each in rows)


def test_a_random_cache_is_deep_finite_and_the_same_each_time(engine):
    fill_cache(engine, 300)
    assert len(engine.cached_tokens) == 300
    logits = engine.decode(3)
    fill_cache(engine, 300)
    assert np.isfinite(logits).all() and np.array_equal(engine.decode(3), logits)


def test_calls_of_one_operator_and_shape_are_one_row_the_slowest_first():
    calls = [
        OperatorCall("linear", "4 -> 8", Cost(100, 64)),
        OperatorCall("norm", "", Cost(10)),
        OperatorCall("linear", "4 -> 8", Cost(100, 64)),
    ]
    rows = aggregate(calls, [[1.0, 5.0, 2.0], [2.0, 6.0, 2.0], [9.0, 7.0, 9.0]])
    assert [(row.operator, row.calls, row.seconds, row.bytes, row.operations) for row in rows] == [
        ("norm", 1, 6.0, 10, 0),
        ("linear", 2, 4.0, 200, 128),
    ]


@pytest.mark.parametrize(
    "options", [{"depths": [-1]}, {"depths": []}, {"repeats": 0}, {"threads": 0}]
)
def test_impossible_depths_and_counts_are_refused_before_anything_is_opened(options):
    with pytest.raises(bench.BenchError, match=next(iter(options)).removesuffix("s")):
        bench_operators("no bundle here", **options)


LIMITS = Limits(2, 100e9, 500e9, 2000e9)
ROWS = [
    OperatorRow("linear", "4 -> 8", 2, 1e-3, 50_000_000, 10**9, True),
    OperatorRow("norm", "", 1, 1e-3, 0, 0, False),
]
REPORT = OperatorReport(
    "M w4", "some cpu", 8, "dense", 4e-3, LIMITS, "minicpm-mlc bench M --operators", ROWS
)


def test_the_table_holds_operators_against_the_limits_and_names_the_rest():
    lines = [line.split() for line in REPORT.plain().splitlines()]
    assert "4.00 ms" in REPORT.plain().splitlines()[0]
    assert lines[5] == [
        "linear",
        "4",
        "->",
        "8",
        "2",
        "1.00",
        "25.0%",
        "50.0",
        "50%",
        "1000.0",
        "50%",
    ]
    assert lines[6] == ["norm", "1", "1.00", "25.0%"]
    assert lines[7] == ["between", "operators", "2.00", "50.0%"]


def test_nothing_is_between_operators_that_took_longer_than_the_step():
    report = replace(REPORT, step_seconds=1.6e-3)
    assert (
        "1.60 ms (operators watched one by one took 125% of that: a busy machine, run it again)"
        in report.head()
    )
    assert report.plain().splitlines()[-1].split() == ["between", "operators", "0.00", "0.0%"]
    assert json.loads(report.json())["between_seconds"] == 0 and "busy" not in REPORT.head()
    assert json.loads(REPORT.json())["between_seconds"] == pytest.approx(2e-3)


def test_a_kernel_is_known_by_what_it_was_compiled_for(engine):
    records = records_of(engine.path)
    assert {"rope_append", "attend_decode"} <= {record.name for record in records.values()}
    model = engine.manifest.model
    norm = next(each for each in records.values() if isinstance(each, RmsNorm | RmsNormInt8))
    assert norm.hidden == model["hidden_size"]


def test_operators_have_their_names_and_computing_shapes_is_none(engine):
    fill_cache(engine, 100)
    _, rows = decode_operators(engine, repeats=1)
    names = {row.operator for row in rows}
    suffix = "_int8" if engine.manifest.activations == "int8" else ""
    assert names >= {f"linear{suffix}", f"rms_norm{suffix}"}
    assert not any(name.startswith("shape_func") or name.endswith("_int") for name in names)


def test_depths_beyond_the_model_are_refused_with_the_deepest_that_fits(engine):
    with pytest.raises(
        BenchError,
        match=r"--depth 1000000 and 64 tokens behind it: .* hold 65536; give --depth 65472 or less",
    ):
        bench_operators(engine.path, [0, 10**6], prompt_tokens=[0])
    with pytest.raises(
        BenchError,
        match=r"--depth 1000000 and 512 tokens behind it: .*; give --depth 65024 or less",
    ):
        bench.bench_bundle(engine.path, [10**6])
    with pytest.raises(BenchError, match="measure fewer tokens, or close other programs"):
        bench.bench_bundle(engine.path, [0], new_tokens=10**6)


@pytest.mark.parametrize("depths", [[-5], [0, -1], []])
def test_depths_that_are_none_are_refused(depths):
    with pytest.raises(BenchError, match="depths must be one or more numbers >= 0"):
        bench_operators("no bundle here", depths)


def test_the_other_forms_hold_the_same():
    assert json.loads(REPORT.json())["rows"][0]["operations"] == 10**9
    assert "| linear | 4 -> 8 | 2 | 1.00 | 25.0% | 50.0 | 50% | 1000.0 | 50% |" in REPORT.markdown()
