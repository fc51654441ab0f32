"""Calibration: the layers on arrays are the model's, rounding makes the outputs' error smaller, and
a killed run goes on where it was.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SPARSE, tiny_config, write_checkpoint
from draft_heads import write_draft

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.calibrate import texts
from minicpm_mlc.compile.calibrate.layers import Calibration, second_moments
from minicpm_mlc.compile.calibrate.rounding import Moments, compensated
from minicpm_mlc.compile.calibrate.texts import calibration_sequences
from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.draft import open_draft
from minicpm_mlc.compile.model.registry import read_config_folder
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.kv import F32
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.formats.weights.schemes.w4 import W4

PRESETS = {  # muP, sparse, Llama
    "MiniCPM4-0.5B": {},
    "MiniCPM4.1-8B": {"sparse": SPARSE},
    "MiniCPM5-1B": {},
}


def draw(length: int, seed: int = 0, vocabulary: int = 323) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, length).astype(np.int32)


class Exact(Calibration):
    """The layers without any rounding."""

    def multiply(self, param, linear, x, matrix):
        return x @ matrix.T


def run_of(
    folder: Path, work: Path, sequences: list[np.ndarray], kind: type[Calibration] = Calibration
) -> Calibration:
    config = read_config_folder(folder)
    precision = Precision(SCHEMES["w4"], SCHEMES["f32"], F32)
    return kind(config, precision, open_checkpoint(folder, config), sequences, work)


def last_states(run: Calibration) -> np.ndarray:
    """The residual stream behind the last layer."""
    run.run()
    with np.load(run.folder / "states") as kept:
        return kept["states"]


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_on_arrays_are_the_models(tiny_bundle, tmp_path, preset):
    tiny = tiny_bundle(preset, **PRESETS[preset])
    sequences = [draw(70), draw(1, 1), draw(9, 2)]
    run = run_of(tiny.checkpoint, tmp_path / "work", sequences, Exact)
    states = last_states(run).astype(np.float64)
    config, norm = tiny.config, tiny.weights["model.norm.weight"]
    states /= np.sqrt((states**2).mean(1, keepdims=True) + config.rms_norm_eps)
    tied = config.tie_word_embeddings
    head = tiny.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    logits = config.logit_scale * (states * norm) @ head.T
    with Engine(tiny.path, attention="dense") as engine:
        for ids, own in zip(sequences, np.split(logits, [70, 71]), strict=True):
            assert np.abs(engine.logits(ids.tolist()) - own).max() < 1e-3


def correlated(n: int = 96, k: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and inputs that a few directions own."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((2000, 24)) @ rng.standard_normal((24, k))
    x = mixed + 0.3 * rng.standard_normal((2000, k)) * rng.uniform(0.2, 3, k)
    return rng.standard_normal((n, k)).astype(np.float32), x.astype(np.float32)


@pytest.mark.parametrize("scheme", ["w4", "w4a", "w4k", "w5k", "w6", "w8"])
def test_rounding_keeps_the_outputs_closer(scheme):
    weights, x = correlated()
    chosen = SCHEMES[scheme]
    assert isinstance(chosen, GroupScheme)
    moments = Moments.of(second_moments(x, np.ones(len(x), np.float32)))
    with ThreadPoolExecutor(2) as pool:
        parts, stood_for = compensated(weights, moments, chosen, pool)
    assert np.allclose(chosen.dequantize(parts), stood_for, atol=1e-6)
    plain = chosen.dequantize(chosen.quantize(weights))
    lost, lost_plainly = (((x @ (w - weights).T) ** 2).sum() for w in (stood_for, plain))
    assert lost < 0.35 * lost_plainly


def test_inputs_that_were_never_seen_round_as_ever():
    weights, x = correlated()
    x[:, 32:64] = 0
    moments = Moments.of(second_moments(x, np.ones(len(x), np.float32)))
    with ThreadPoolExecutor(2) as pool:
        _, stood_for = compensated(weights, moments, W4(), pool)
    error = np.abs(stood_for - weights)
    assert error[:, 32:64].max() < 0.5


def test_tokens_that_many_attend_to_count_more():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10, 4)).astype(np.float32)
    importance = np.array([5.0] + [1.0] * 9, np.float32)
    repeated = np.concatenate([x[:1]] * 5 + [x[1:]])
    expected = repeated.T @ repeated / len(repeated)
    assert np.allclose(second_moments(x, importance), expected, rtol=1e-5)


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B"), dtype="f32")
    sequences = [draw(40), draw(1, 1)]

    def kill(_stage: str, done: int, _total: int) -> None:
        if done:
            raise Killed

    whole = run_of(tmp_path / "model", tmp_path / "whole", sequences).run()
    with pytest.raises(Killed):
        run_of(tmp_path / "model", tmp_path / "killed", sequences).run(kill)
    seen: list[int] = []
    resumed = run_of(tmp_path / "model", tmp_path / "killed", sequences)
    parts = resumed.run(lambda _stage, done, _total: seen.append(done))
    assert seen == [1, 2]
    assert set(parts) == set(whole) and len(whole) == 8
    for name in whole:
        assert all(np.array_equal(whole[name][key], parts[name][key]) for key in whole[name])


def test_another_text_starts_anew(tmp_path):
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B"), dtype="f32")
    seen: list[int] = []
    for seed in (0, 0, 1):
        run = run_of(tmp_path / "model", tmp_path / "work", [draw(40, seed)])
        run.run(lambda _stage, done, _total: seen.append(done))
    assert seen == [0, 1, 2, 2, 0, 1, 2]


def test_compile_calibrate_writes_what_was_rounded(no_code, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LENGTH", 32)
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B"), dtype="f32")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 8, encoding="utf-8")
    stored = {}
    for name, given in {"plain": None, "once": [text], "again": [text]}.items():
        compile_model(tmp_path / "model", tmp_path / name, calibrate=given, prefill_chunk=64)
        files = sorted((tmp_path / name).glob("params_shard_*.bin"))
        stored[name] = b"".join(file.read_bytes() for file in files)
    assert stored["once"] == stored["again"] != stored["plain"]
    assert not list(tmp_path.glob(".*calibration"))


@pytest.mark.parametrize("scheme", ["f16", "f32"])
def test_floats_are_not_calibrated(tmp_path, scheme):
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B"))
    with pytest.raises(CompileError, match=f"{scheme} weights are not rounded.*--quant w4a"):
        compile_model(tmp_path / "model", tmp_path / "out", scheme=scheme, calibrate=[])


def test_texts_that_can_not_be_read(tmp_path):
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B"))
    config = read_config_folder(tmp_path / "model")
    with pytest.raises(CompileError, match="can't be read as UTF-8"):
        calibration_sequences(SmallFiles(tmp_path / "model"), config, [tmp_path / "nothing.txt"])
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(CompileError, match="expected at least 512"):
        calibration_sequences(SmallFiles(tmp_path / "model"), config, [short])


def test_long_texts_are_cut_in_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MOST", 1000)
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B"))
    config = read_config_folder(tmp_path / "model")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, letter, length in zip(files, "ab", (1500, 500), strict=True):
        file.write_text(letter * length)
    stream = np.concatenate(calibration_sequences(SmallFiles(tmp_path / "model"), config, files))
    assert len(stream) == 999  # each text's first token is the space that the tokenizer adds
    assert (stream == stream[700]).sum() == 748 and (stream == stream[900]).sum() == 249


def test_without_a_tokenizer_tokens_are_drawn():
    config = tiny_config("MiniCPM5-1B")
    once, again = (calibration_sequences(SmallFiles(None), config, []) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert sum(map(len, once)) == texts.MOST


@pytest.mark.parametrize(("kind", "bias"), [("eagle2", True), ("eagle3", False)])
def test_a_draft_head_is_rounded_on_what_the_model_hands_to_it(tmp_path, kind, bias):
    small = {"num_layers": 4, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 2}
    base = tiny_config("MiniCPM4-0.5B", **small)
    write_checkpoint(tmp_path / "model", base, dtype="f32")
    write_draft(tmp_path / "head", base, kind, bias=bias)
    head = open_draft(tmp_path / "head", base)
    precision = Precision(SCHEMES["w4"], SCHEMES["f32"], F32)
    both = head.beside(open_checkpoint(tmp_path / "model", base), base.tie_word_embeddings)
    sequences = [draw(60), draw(30, 1)]

    def run(folder: str, kind: type[Calibration]) -> Calibration:
        draft = head.config, precision
        return kind(base, precision, both, sequences, tmp_path / folder, draft)

    inputs: dict[str, np.ndarray] = {}

    class Watched(Calibration):
        def multiply(self, param, linear, x, matrix):
            inputs[param.name] = x
            return super().multiply(param, linear, x, matrix)

    parts = run("once", Watched).run()
    own = [name for name in parts if name.startswith("draft.")]
    assert len(own) == 5 and "draft.head" not in own
    assert all(len(inputs[name]) == 90 - 2 for name in own)
    again = run("again", Calibration).run()
    assert all(np.array_equal(parts[n]["weight"], again[n]["weight"]) for n in own)
    fc, exact = W4().dequantize(parts["draft.fc"]), both.rows("draft/fc.weight")
    plain = W4().dequantize(W4().quantize(exact))
    x = inputs["draft.fc"]
    lost, lost_plainly = (((x @ (w - exact).T) ** 2).sum() for w in (fc, plain))
    assert lost < 0.9 * lost_plainly
