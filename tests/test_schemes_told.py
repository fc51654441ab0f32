"""What inspect says of each weight scheme, and the record that it says it from."""

from __future__ import annotations

import schemes

from minicpm_mlc.base.choices import DEFAULT_SCHEME
from minicpm_mlc.bench.speed_report import SpeedRow
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.inspect.describe import as_text, describe
from minicpm_mlc.inspect.schemes import bits, recorded, scheme_rows
from minicpm_mlc.ops.formats.weights import SCHEMES

INTEGERS = [name for name, scheme in SCHEMES.items() if scheme.takes_int8]


def test_every_scheme_has_its_bits_and_size():
    rows = {row["scheme"]: row for row in scheme_rows(PRESETS["MiniCPM4.1-8B"])}
    assert set(rows) == set(SCHEMES)
    told = {"w4": 4.5, "w4k": 4.5, "w4a": 5, "w5k": 5.5, "w6": 6.5625, "w8": 8.5, "f16": 16}
    assert {name: rows[name]["bits a weight"] for name in told} == told
    sizes = [row["bundle"] for row in rows.values()]
    assert sizes == sorted(sizes)
    assert rows["w4a"]["embedding"] == "w8" and rows["f16"]["embedding"] == "f16"


def test_what_was_measured_of_every_scheme_of_integers_is_shown():
    assert {"w4", "w4a", "w4k", "w5k", "w6", "w8"} <= set(recorded()) <= set(INTEGERS)
    assert {"divergence", "calibrated", "perplexity"} <= set(recorded()[DEFAULT_SCHEME])
    for name, figures in recorded().items():
        told = [
            figures[key] for key in ("divergence", "calibrated", "perplexity") if key in figures
        ]
        assert all(len(texts) == 2 for texts in told), name
        assert 0.5 < figures["decode"] <= 1.2 and figures["prefill"] > 0.5, name
    text = as_text(describe("MiniCPM4.1-8B"))
    line = next(line for line in text.splitlines() if line.startswith("w4a "))
    assert line.split()[1:3] == ["5", "w8"] and line.endswith(f"{recorded()['w4a']['decode']:.2f}")


def test_the_default_is_the_nearest_at_five_bits_that_is_as_quick_a_byte():
    """Of the schemes of at most 5 bits whose decode, by the bytes it reads, is within 5 % of w4's,
    the one of least divergence.
    """
    figures = recorded()
    size = {name: bits(SCHEMES[name]) for name in figures}
    quick = [
        name
        for name in figures
        if "divergence" in figures[name]
        and size[name] <= 5
        and figures[name]["decode"] * size[name] / size["w4"] >= 0.95
    ]
    assert min(quick, key=lambda name: sum(figures[name]["divergence"])) == DEFAULT_SCHEME


def test_ratios_are_medians_of_those_within_the_rounds():
    rows = {
        "w4": [SpeedRow("decode", 0, 64, (100.0, 50.0, 80.0))],
        "w8": [SpeedRow("decode", 0, 64, (50.0, 30.0, 40.0))],
    }
    assert schemes.of_speeds(rows) == {"w4": {"decode": 1.0}, "w8": {"decode": 0.5}}
    assert schemes.cells(rows)[2] == ["w8", "40.0 (0.50x)"]


def test_a_record_takes_schemes_from_the_rows_of_a_comparison():
    texts = [{"divergence": 0.123456, "perplexity": 20.0}, {"divergence": 0.1, "perplexity": 7.0}]
    names = ("w4", "w4, calibrated", "w4, calibrated, KV int8", "llama.cpp Q4_0")
    found = schemes.of_quality([{"variant": name, "texts": texts} for name in names])
    merged = schemes.merged({"w4": {"decode": 1.0, "calibrated": [1, 1]}}, found)
    expected = {"calibrated": [0.1235, 0.1], "divergence": [0.1235, 0.1], "perplexity": [20, 7]}
    assert merged == {"w4": {"decode": 1.0} | expected}
