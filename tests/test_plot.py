"""bench --plot: an SVG with a line per phase and gear."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from minicpm_mlc.runtime_py.bench import Report, Row
from minicpm_mlc.runtime_py.plot import PlotError, plot
from minicpm_mlc.runtime_py.reports import Reports

MANIFEST = SimpleNamespace(memory_need=lambda context: context * 1000)


def report(speed: float) -> Report:
    rows = [Row(phase, depth, 8, (speed / (1 + depth),)) for phase in ("prefill", "decode") for depth in (0, 1024)]
    return Report("tiny", "w4", "a processor", 2, 2048, "minicpm-mlc bench", 1e9, rows)


def test_the_svg_names_gears_phases_and_machine(tmp_path):
    pytest.importorskip("matplotlib")
    plot({"dense": report(10), "sparse": report(20)}, MANIFEST, tmp_path / "out.svg")
    page = (tmp_path / "out.svg").read_text()
    assert page.count("<svg") == 1
    for word in ("dense", "sparse", "decode, tokens/s", "prefill, tokens/s", "memory needed, GiB", "a processor"):
        assert f"<!-- {word}" in page or word in page
    assert [path.name for path in tmp_path.iterdir()] == ["out.svg"]


def test_a_missing_library_or_folder_is_said_plainly(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(PlotError, match="can't be written"):
        plot({"dense": report(10)}, MANIFEST, tmp_path / "no" / "out.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match="pip install"):
        plot({"dense": report(10)}, MANIFEST, tmp_path / "out.svg")


def test_each_gears_report_has_its_name_in_the_json():
    reports = json.loads(Reports({"dense": report(10), "sparse": report(20)}).json())
    assert {gear: rows["rows"][0]["tokens_per_second"] for gear, rows in reports.items()} == {"dense": 10, "sparse": 20}
