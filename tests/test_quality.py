"""The verb `quality`: two bundles beside each other, and a checkpoint as the reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from minicpm_mlc import Engine
from minicpm_mlc.bench.accepted import BEFORE, accept_length, places
from minicpm_mlc.bench.quality import QualityError, Watched, bench_quality, measure_quality
from minicpm_mlc.cli import main
from minicpm_mlc.compile.calibrate.text_run import TextRun
from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.model.registry import PLAIN

PRESET = "MiniCPM5-1B"
TEXTS = {"a": "The quick brown fox jumps over the lazy dog. " * 3, "b": "Short."}


def test_a_bundle_is_no_distance_from_itself(tiny_bundle):
    path = tiny_bundle(PRESET).path
    with Engine(path) as own, Engine(path) as exact:
        report = measure_quality(own, exact, TEXTS)
    assert [row.text for row in report.texts] == ["a", "b"]
    for row in report.texts:
        assert row.divergence == pytest.approx(0, abs=1e-12) and row.agreement == 1
        assert row.perplexity == row.reference_perplexity > 1
    assert report.layers == [0, 0]


def test_four_bits_are_some_distance_away(tiny_bundle):
    with Engine(tiny_bundle(PRESET, "w4").path) as own, Engine(tiny_bundle(PRESET).path) as exact:
        report = measure_quality(own, exact, TEXTS, tokens=100)
        ids = own.tokenize(TEXTS["a"])[:100]
        logits = [engine.logits(ids).astype(np.float64) for engine in (own, exact)]
    mine, theirs = (rows - np.log(np.exp(rows).sum(1, keepdims=True)) for rows in logits)
    row = report.texts[0]
    assert row.tokens == 100
    assert row.divergence == pytest.approx((np.exp(theirs) * (theirs - mine)).sum(1).mean())
    assert row.agreement == pytest.approx((mine.argmax(1) == theirs.argmax(1)).mean())
    assert row.perplexity == pytest.approx(np.exp(-mine[np.arange(99), ids[1:]].mean()))
    assert len(report.layers) == 2 and all(0.001 < error < 1 for error in report.layers)


def test_the_stream_that_is_watched_is_the_models(tiny_bundle):
    tiny = tiny_bundle(PRESET)
    ids = np.random.default_rng(0).integers(0, 323, 70).astype(np.int32)
    run = TextRun(tiny.config, PLAIN, open_checkpoint(tiny.checkpoint, tiny.config), [ids])
    states, batch, expected = run.embedded(), run.batch(), []
    for number, layer in enumerate(run.model.layers):
        states = run.through(number, layer, states, batch)
        expected.append(states)
    with Engine(tiny.path) as engine:
        watched, seen = Watched(engine), []
        for _ in watched.answers(ids.tolist(), 32):
            seen.append(watched.streams)
    for number, exact in enumerate(expected):
        own = np.concatenate([streams[number] for streams in seen])
        assert np.abs(own - exact).max() < 1e-4 * np.abs(exact).max()


def test_a_checkpoint_as_the_reference_is_compiled_for_it(tiny_bundle, tmp_path):
    tiny, said = tiny_bundle(PRESET, "w4"), []
    text = tmp_path / "text.txt"
    text.write_text(TEXTS["a"], encoding="utf-8")
    by_checkpoint = bench_quality(tiny.path, tiny.checkpoint, [text], say=said.append)
    by_bundle = bench_quality(tiny.path, tiny_bundle(PRESET).path, [text])
    assert by_checkpoint.texts == by_bundle.texts
    assert len(said) == 1 and "compiling it to f32" in said[0]


def test_the_command_prints_a_table_and_json(tiny_bundle):
    paths = str(tiny_bundle(PRESET, "w4").path), "--reference", str(tiny_bundle(PRESET).path)
    plain = CliRunner().invoke(main, ["quality", *paths, "--tokens", "64"])
    assert plain.exit_code == 0 and "held_out.txt      64" in plain.output
    report = json.loads(CliRunner().invoke(main, ["quality", *paths, "--json"]).stdout)
    assert report["scheme"] == "w4" and report["texts"][0]["divergence"] > 0


def test_another_model_is_refused(tiny_bundle):
    other = tiny_bundle("MiniCPM4-0.5B").path
    with pytest.raises(QualityError, match=r"hidden_size 192 and the reference 1024; give"):
        bench_quality(tiny_bundle(PRESET).path, other)


def test_a_text_that_is_not_there(tiny_bundle, tmp_path):
    path = tiny_bundle(PRESET).path
    with pytest.raises(QualityError, match=r"nothing.txt: can't be read .*; give a file"):
        bench_quality(path, path, [tmp_path / "nothing.txt"])


def test_prompts_are_spread_over_a_text_and_none_is_twice():
    assert places(BEFORE + 700) == [0, 100, 200, 300, 400, 500, 600, 700]
    assert places(BEFORE + 3) == [0, 1, 2, 3] and places(5) == [0]


def test_accept_lengths_of_draft_heads_are_told(demo_bundle, tiny_bundle):
    question = "<|im_start|>user\nWhat is 4827 + 356?<|im_end|>\n<|im_start|>assistant\n"
    with Engine(demo_bundle, context=512) as own, Engine(demo_bundle, context=512) as exact:
        report = measure_quality(own, exact, {"sum": question})
        length = accept_length(own, [own.tokenize(question)])
    assert report.accept_lengths == (length, length) and length and length > 2
    assert f"brings: {length:.3f}, of the reference {length:.3f}" in report.plain()
    with Engine(tiny_bundle(PRESET).path) as engine:
        assert accept_length(engine, [[1, 2, 3]]) is None


def test_a_bundle_as_the_reference_takes_no_draft_head(tiny_bundle):
    path = tiny_bundle(PRESET).path
    with pytest.raises(QualityError, match=r"--draft head: .* leave --draft out"):
        bench_quality(path, path, draft="head")
