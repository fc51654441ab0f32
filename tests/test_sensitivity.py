"""A budget of bits goes where it saves most, and the chosen linears are compiled and run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.calibrate import forecast, texts
from minicpm_mlc.compile.calibrate.asked import bits_of, richer
from minicpm_mlc.compile.calibrate.forecast import calibration_seconds
from minicpm_mlc.compile.calibrate.sensitivity import Choice, Sensitivity, within_budget
from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.compile.model.registry import read_config_folder
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.inspect.describe import describe, mixed_with
from minicpm_mlc.ops.formats.kv import F32
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.groups import GroupScheme

W4, W8 = SCHEMES["w4"], SCHEMES["w8"]


def choices(linear: str, weights: int, loss: float) -> list[Choice]:
    return [Choice(linear, W4, 4 * weights, loss), Choice(linear, W8, 8 * weights, 0.01 * loss)]


def test_bits_go_where_the_loss_falls_most_per_bit():
    found = [choices("small", 10, 4.0), choices("large", 100, 20.0), choices("dull", 10, 0.1)]
    assert within_budget(found, W4, 4.0, 120) == {}
    assert within_budget(found, W4, 4.4, 120) == {"small": W8}  # 0.4 a bit, not 0.2
    assert within_budget(found, W4, 7.7, 120) == {"small": W8, "large": W8}
    assert within_budget(found, W4, 8.0, 120) == {"small": W8, "large": W8, "dull": W8}
    with pytest.raises(CompileError, match=r"--bits 3.9: w4 linears take 4.00 bits"):
        within_budget(found, W4, 3.9, 120)


def test_no_bits_go_where_they_gain_nothing():
    worse = [[Choice("a", W4, 40, 1.0), Choice("a", W8, 80, 1.5)]]
    assert within_budget(worse, W4, 9.0, 10) == {}


def test_schemes_by_their_bits():
    w4 = SCHEMES["w4"]
    assert isinstance(w4, GroupScheme) and bits_of(w4) == 4.5
    names = [scheme.name for scheme in richer(w4)]
    assert names[0] == "w4" and {"w4a", "w8"} <= set(names)


def test_a_linear_that_spoils_more_has_the_larger_loss(tmp_path):
    write_checkpoint(tmp_path, tiny_config("MiniCPM5-1B"), dtype="f32")
    config = read_config_folder(tmp_path)
    precision = Precision(W4, SCHEMES["f32"], F32)
    ids = np.random.default_rng(0).integers(0, 323, 48).astype(np.int32)
    run = Sensitivity(config, precision, open_checkpoint(tmp_path, config), [ids[:30], ids[30:]])
    assert isinstance(W4, GroupScheme) and isinstance(W8, GroupScheme)
    found = run.measure([W4, W8])
    assert len(found) == 8 and len({each[0].linear for each in found}) == 8
    for at_four, at_eight in found:
        assert 0 < at_eight.loss < 0.05 * at_four.loss
        assert at_eight.bits > 1.8 * at_four.bits


def test_a_mixed_bundle_is_compiled_run_told_and_carried(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LENGTH", 32)
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B"), dtype="f32")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 8, encoding="utf-8")
    mixed, again = tmp_path / "mixed", tmp_path / "again"
    options = {"calibrate": [text], "bits": 6.0, "context": 256, "prefill_chunk": 64}
    compile_model(tmp_path / "model", mixed, **options)
    told = describe(str(mixed))
    assert told["mixed with"] and told["calibrated"]["tokens"] > 300
    assert told["bits a weight"] > 5
    compile_model(mixed, again, prefill_chunk=64)
    assert describe(str(again))["mixed with"] == told["mixed with"]
    ids = [5, 9, 200, 17, 5]
    logits = []
    for path in (mixed, again):
        with Engine(path) as engine:
            logits.append(engine.logits(ids))
    assert np.array_equal(*logits)
    shards = [[p.read_bytes() for p in sorted(b.glob("*.bin"))] for b in (mixed, again)]
    assert shards[0] == shards[1]
    manifests = [json.loads((b / "manifest.json").read_bytes()) for b in (mixed, again)]
    assert manifests[0]["mixed"] and manifests[0]["calibration"]
    assert manifests[0]["scheme"] == "w4k"  # the fewest bits, where nothing else is asked for
    for key in ("mixed", "calibration", "scheme", "embedding_scheme"):
        assert manifests[0][key] == manifests[1][key]


def test_mixed_linears_by_scheme_and_layer():
    mixed = {
        "model.layers.0.mlp.down_proj.weight": "w8",
        "model.layers.11.mlp.down_proj.weight": "w8",
        "model.layers.3.self_attn.q_proj.weight": "w8",
        "model.layers.3.self_attn.o_proj.weight": "w4a",
    }
    assert mixed_with(mixed) == {"w8": "down_proj 0 11; q_proj 3", "w4a": "o_proj 3"}


def test_calibration_is_offered_for_four_bits_alone(tmp_path):
    write_checkpoint(tmp_path, tiny_config("MiniCPM5-1B"))
    offers = {
        scheme: compile_model(tmp_path, scheme=scheme, dry_run=True).offer
        for scheme in ("w4", "w8", "f16")
    }
    assert "take about 1 min here" in str(offers["w4"])
    assert offers["w8"] is offers["f16"] is None


def test_calibration_is_foretold_by_its_multiplications(monkeypatch):
    monkeypatch.setattr(forecast, "multiplying_speed", lambda: 1e12)
    monkeypatch.setattr(forecast, "PASSES", 0.0)
    one = Param("layers.0.mlp.down", ("down",), 1024, 4096, W4)
    seconds = [calibration_seconds([one], tokens) for tokens in (1000, 2000)]
    outputs, triangle = 4 * 1024 * 4096, 4096**2  # of a token
    added = 1000 * (outputs + triangle) / 1e12
    assert seconds[1] - seconds[0] == pytest.approx(added)
    assert calibration_seconds([one, one], 1000) == pytest.approx(2 * seconds[0])
