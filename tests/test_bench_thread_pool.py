"""bench/thread_pool.py: ratios are taken within rounds, and sides measure what they are asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from thread_pool import PARTS, RATIOS, Side, ratios


def test_ratios_are_medians_of_those_within_each_round() -> None:
    names = {name for row in RATIOS for name in row[:2]}
    rates = {name: {part: [10.0, 20.0, 40.0] for part in PARTS} for name in names}
    rates["own pool"]["decode"] = [30.0, 20.0, 20.0]
    rows = {(row["what"], row["part"]): row for row in ratios(rates)}
    assert len(rows) == len(RATIOS) * len(PARTS)
    assert rows["own pool", "prefill"]["ratio"] == 1.0
    assert rows["own pool", "decode"]["ratio"] == 1.0  # of 3, 1 and 0.5
    assert rows["two processes", "decode"]["ratio"] == 1.0  # of 1/3, 1 and 2


@pytest.mark.parametrize("tvm_pool", [False, True])
def test_a_side_measures_both_parts(tiny_bundle, tvm_pool: bool) -> None:
    side = Side(tiny_bundle("MiniCPM4-0.5B").path, 1, 1, tvm_pool)
    for part in PARTS:
        side.begin(part)
        assert side.end() > 0
    side.close()


def test_a_side_that_fails_ends_the_wait_for_it(tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        Side(tmp_path / "missing", 1, 1, False)
