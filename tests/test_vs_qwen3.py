"""The comparison with Qwen3: the shapes, the cache's bytes, the table. No model is compiled."""

from __future__ import annotations

import sys

import pytest
import vs_qwen3

from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bench.speed_report import SpeedRow


def row(depth: int, speed: float) -> SpeedRow:
    return SpeedRow("decode", depth, 16, (speed,))


COMPARISON = vs_qwen3.Comparison(
    "some cpu",
    Limits(2, 40e9, 500e9, None),
    "f16",
    "python bench/vs_qwen3.py",
    {"MiniCPM": 2**15, "Qwen3": 2**17},
    {"MiniCPM sparse": [row(2**15, 30.0)], "Qwen3 dense": [row(2**15, 10.0)]},
)


def test_a_share_of_the_layers_is_the_same_of_both():
    rivals = vs_qwen3.Rivals.of("8B", 8, False)
    assert (rivals.ours.num_layers, rivals.theirs.num_layers) == (8, 9)
    whole = vs_qwen3.Rivals.of("0.5B", None, True)
    assert (whole.ours.num_layers, whole.theirs.num_layers) == (24, 28) and whole.ours.sparse


@pytest.mark.parametrize("kv, most", [("f16", 0.25), ("int8", 0.25)])
def test_a_token_takes_at_most_a_quarter_of_what_it_takes_in_qwen3(kv, most):
    rivals = vs_qwen3.Rivals.of("8B", 4, False)
    ours, theirs = (vs_qwen3.cache_bytes(each, kv) for each in (rivals.ours, rivals.theirs))
    if kv == "f16":
        assert theirs == 36 * 2 * 8 * 128 * 2  # layers, key and value, heads, width, bytes
    assert ours / theirs <= most


def test_the_table_holds_the_cache_and_how_many_times_qwen3s_speed():
    head, line = COMPARISON.cells()
    assert head[-1] == "MiniCPM sparse to Qwen3 dense"
    assert line == ["decode", "32768", "16", "1.00 / 4.00", "30.0", "10.0", "3.00x"]
    assert "takes 32768 bytes in MiniCPM, 131072 in Qwen3: 25.0%" in COMPARISON.plain()


def test_the_picture_names_every_side_and_both_caches(tmp_path):
    pytest.importorskip("matplotlib")
    vs_qwen3.draw(COMPARISON, tmp_path / "speed.svg")
    drawn = (tmp_path / "speed.svg").read_text()
    for name in ("MiniCPM sparse", "Qwen3 dense", "MiniCPM", "Qwen3"):
        assert f"<!-- {name} -->" in drawn


def test_a_picture_of_another_kind_is_refused_before_anything_is_measured(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(vs_qwen3, "bundle_of", lambda *_: pytest.fail("something was compiled"))
    monkeypatch.setattr(sys, "argv", ["vs_qwen3.py", "--plot", "speed.jpg"])
    with pytest.raises(SystemExit, match=r"ends in \.svg or \.png"):
        vs_qwen3.main()
