"""bench/linear.py measures what it says: every side, each shape, speeds of the same product."""

from __future__ import annotations

import json
import sys

import linear as bench
import pytest

SMALL = [
    "linear.py",
    "--no-ggml",
    "--rotate",
    "0",
    "--repeats",
    "1",
    "--shape",
    "1x64x96",
    "--shape",
    "3x48x64",
]


@pytest.mark.parametrize("scheme, nbytes", [("w4", 64 * 96 // 2), ("w8", 64 * 96)])
def test_stored_bytes_count_weights_and_scales(scheme, nbytes):
    assert bench.stored_bytes(64, 96, scheme) == nbytes + 64 * 3 * 2


def test_every_side_is_measured_at_every_shape(monkeypatch, capsys):
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", [*SMALL, "--json"])
    bench.main()
    report = json.loads(capsys.readouterr().out)
    sides = {(row["m"], row["side"].split()[0]) for row in report["rows"]}
    assert sides == {(1, "int8"), (1, "float32"), (1, "memory"), (3, "int8"), (3, "float32")}
    for row in report["rows"]:
        nbytes = bench.stored_bytes(row["n"], row["k"], "w4")
        products = 2 * row["m"] * row["n"] * row["k"]
        assert row["gop_per_second"] / row["gb_per_second"] == pytest.approx(products / nbytes)


def test_sides_take_turns_and_the_first_pass_is_not_counted():
    calls, ticks = [], iter(range(100))
    passes = {side: lambda side=side: calls.append(side) for side in "ab"}
    seconds = bench.measure(passes, 2, lambda: next(ticks))
    assert calls == ["a", "b"] * 3
    assert {side: len(times) for side, times in seconds.items()} == {"a": 2, "b": 2}
