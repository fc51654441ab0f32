"""bench --plot: an SVG or PNG with a line per phase and gear."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from checkpoints import SPARSE

from minicpm_mlc.bench import plot as module
from minicpm_mlc.bench.decode import BenchError
from minicpm_mlc.bench.plot import PlotError, bench_both_gears, plot
from minicpm_mlc.bench.reports import Reports
from minicpm_mlc.bench.speed_report import SpeedReport, SpeedRow

MANIFEST = SimpleNamespace(memory_need=lambda context: context * 1000)


def report(speed: float) -> SpeedReport:
    rows = [
        SpeedRow(phase, depth, 8, (speed / (1 + depth),))
        for phase in ("prefill", "decode")
        for depth in (0, 1024)
    ]
    return SpeedReport("tiny", "w4", "a processor", 2, 2048, "minicpm-mlc bench", 1e9, rows)


def test_the_svg_names_gears_phases_and_machine(tmp_path):
    pytest.importorskip("matplotlib")
    plot({"dense": report(10), "sparse": report(20)}, MANIFEST, tmp_path / "out.svg")
    page = (tmp_path / "out.svg").read_text()
    assert page.count("<svg") == 1
    one_cache = "dense and sparse: one cache, segment means in it"
    for word in (
        "dense",
        "sparse",
        one_cache,
        "decode, tokens/s",
        "prefill, tokens/s",
        "memory needed, MiB",
        "a processor",
    ):
        assert f"<!-- {word}" in page or word in page
    assert [path.name for path in tmp_path.iterdir()] == ["out.svg"]


def test_a_png_is_one_and_no_other_form_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    large = SimpleNamespace(memory_need=lambda context: context * 10**7)
    plot({"dense": report(10)}, large, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG\r\n")
    for name in ("out.pdf", "out"):
        with pytest.raises(PlotError, match=r"ends in \.svg or \.png"):
            plot({"dense": report(10)}, large, tmp_path / name)


def test_a_missing_library_or_folder_is_said_plainly(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(PlotError, match="can't be written"):
        plot({"dense": report(10)}, MANIFEST, tmp_path / "no" / "out.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match="pip install"):
        plot({"dense": report(10)}, MANIFEST, tmp_path / "out.svg")


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return tiny_bundle("MiniCPM4.1-8B", sparse=SPARSE).path


def test_both_gears_are_measured_in_one_run(bundle, tmp_path):
    pytest.importorskip("matplotlib")
    options = {
        "depths": [0, 500],
        "prompt_tokens": [20],
        "new_tokens": 3,
        "repeats": 1,
        "threads": 1,
    }
    reports = bench_both_gears(bundle, tmp_path / "out.svg", **options).reports
    assert {gear: {row.attention for row in report.rows} for gear, report in reports.items()} == {
        "dense": {"dense"},
        "sparse": {"sparse"},
    }
    assert [[(row.phase, row.depth) for row in report.rows] for report in reports.values()] == [
        [("prefill", 0), ("decode", 0), ("prefill", 500), ("decode", 500)]
    ] * 2
    assert all(
        f"--repeats 1 --threads 1 --plot {tmp_path / 'out.svg'}" in report.command
        for report in reports.values()
    )
    assert (tmp_path / "out.svg").read_text().count("<svg") == 1
    with pytest.raises(BenchError, match="--repeats"):
        bench_both_gears(bundle, tmp_path / "out.svg", **options | {"repeats": 0})


def test_what_can_not_be_drawn_is_refused_before_anything_is_measured(
    bundle, tiny_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "bench_gears", None)
    with pytest.raises(PlotError, match="has no sparse attention"):
        bench_both_gears(tiny_bundle("MiniCPM5-1B").path, tmp_path / "out.svg")
    with pytest.raises(PlotError, match="its folder is not there"):
        bench_both_gears(bundle, tmp_path / "no" / "out.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match="pip install"):
        bench_both_gears(bundle, tmp_path / "out.svg")


def test_each_gears_report_has_its_name_in_the_json():
    reports = json.loads(Reports({"dense": report(10), "sparse": report(20)}).json())
    assert {gear: rows["rows"][0]["tokens_per_second"] for gear, rows in reports.items()} == {
        "dense": 10,
        "sparse": 20,
    }
