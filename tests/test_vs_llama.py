from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

from minicpm_mlc.runtime_py.bench import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
vs_llama = importlib.import_module("vs_llama")

COMPARISON = vs_llama.Comparison(
    "M", "some cpu", 2, 40e9, 0.98, 3.25, "python bench/vs_llama.py",
    [Row("prefill", 0, 8, (50.0,)), Row("decode", 0, 8, (10.0, 30.0, 20.0), 20.0)],
    [Row("prefill", 0, 8, (100.0,)), Row("decode", 0, 8, (10.0, 40.0, 90.0), 10.0)],
)  # fmt: skip


class CountsCalls:
    """A model that notes the process it runs in and how it was opened."""

    def __init__(self, note: str):
        self.note = Path(note)

    def prefill(self, token_ids):
        self.note.write_text(f"{os.getpid()} {len(token_ids)}")

    def decode(self, token_id):
        pass

    def truncate(self, length):
        pass


def test_a_remote_side_runs_and_times_itself_in_another_process(tmp_path):
    side = vs_llama.Remote(CountsCalls, 100, str(tmp_path / "note"))
    side.fill(5)
    pid, tokens = (tmp_path / "note").read_text().split()
    assert int(pid) != os.getpid() and tokens == "5"
    assert 0 < side.prefill_seconds(7) < 60
    assert (tmp_path / "note").read_text().split()[1] == "7"
    assert 0 < side.decode_seconds(3) < 60


def test_a_side_that_fails_ends_the_run_with_a_sentence():
    side = vs_llama.Remote(CountsCalls, 100)  # its argument is missing
    with pytest.raises(SystemExit, match="one side ended early"):
        side.fill(1)


class Said:
    """A side whose logits are known."""

    def __init__(self, logits):
        self.said = logits

    def logits(self, tokens):
        return self.said


def test_sides_that_compute_different_models_are_not_compared():
    assert vs_llama.agreement(Said([1.0, 2.0, 4.0]), Said([1.1, 2.0, 3.9])) > 0.99
    with pytest.raises(SystemExit, match="don't compute the same model"):
        vs_llama.agreement(Said([1.0, 2.0, 4.0]), Said([4.0, 1.0, 2.0]))


def test_comparison_shows_medians_their_ratio_and_both_bandwidths():
    prefill, decode = (line.split() for line in COMPARISON.plain().splitlines()[3:])
    assert prefill == ["prefill", "0", "8", "50.0", "100.0", "0.50x"]
    assert decode == ["decode", "0", "8", "20.0", "40.0", "0.50x", "20.0", "=", "50%", "10.0", "=", "25%"]


def test_comparison_says_what_was_run():
    markdown = COMPARISON.markdown()
    assert "some cpu, 2 threads, memory reads 40.0 GB/s" in markdown
    assert "correlate 0.980" in markdown and "Load average before the run: 3.2" in markdown
    assert "`python bench/vs_llama.py`" in markdown
    assert json.loads(COMPARISON.json())["theirs"][1]["samples"] == [10.0, 40.0, 90.0]
