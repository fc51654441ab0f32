"""Ternary weights: found by their values, carried but for outliers, made by the training's rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_tensors, write_checkpoint
from packers import notes_of, small_config, told

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.checkpoint import Weights, open_checkpoint
from minicpm_mlc.ops.formats.weights import SCHEMES

GATE = "model.layers.0.mlp.gate_proj.weight"
W4, W8, W4A = (SCHEMES[name] for name in ("w4", "w8", "w4a"))


def ternary(shape: tuple[int, int], group: int) -> np.ndarray:
    """Weights of bf16 sizes with an empty group."""
    rng = np.random.default_rng(shape[0])
    sizes = (rng.integers(128, 256, (shape[0], shape[1] // group)) / 8192).astype(np.float32)
    sizes[0, 0] = 0
    return sizes.repeat(group, 1) * rng.integers(-1, 2, shape)


def written(folder: Path, group: int = 64, gate: np.ndarray | None = None) -> Weights:
    weights = write_checkpoint(folder, small_config(), dtype="bf16")
    for name, value in weights.items():
        if "_proj" in name:
            weights[name] = ternary((value.shape[0], value.shape[1]), group).astype(np.float32)
    weights[GATE] = weights[GATE] if gate is None else gate
    save_tensors(folder / "model.safetensors", weights)
    return open_checkpoint(folder, small_config())


@pytest.mark.parametrize("group", [64, 32])
def test_ternary_weights_are_carried(tmp_path, group):
    weights = written(tmp_path, group)
    assert weights.schemes() == ("w4", None)
    assert notes_of(weights, "w4", "w8") == []
    for name, tensor in weights.tensors.items():
        for scheme in (W4, W8, W4A) if "_proj" in name else ():
            parts = tensor.carried(scheme, 3, 70)
            assert parts and np.array_equal(scheme.dequantize(parts), weights.rows(name, 3, 70))
    values = weights.tensors[GATE].carried(W4, 0, 1)
    assert values and set(values["weight"].reshape(-1).tolist()) <= {7, 8, 9}


def test_a_few_outliers_are_rounded_and_told(tmp_path):
    odd = ternary((192, 128), 64).astype(np.float32)
    odd[100, 5], odd[150, 127] = 0.25, -0.125  # beyond the rows that are sampled
    weights = written(tmp_path, gate=odd)
    [note] = notes_of(weights, "w4", "w8")
    assert note == "2 groups of 32 ternary weights hold other values, and are rounded"
    parts = weights.carried(GATE, W4, 90, 160)
    rows = weights.rows(GATE, 90, 160)
    assert parts
    same = W4.dequantize(parts) == rows
    assert same[:10].all() and same[11:60].all() and same[10, 32:].all() and not same[10, 5]


def test_weights_of_more_values_are_floats(tmp_path):
    odd = ternary((192, 128), 64).astype(np.float32)
    odd[:, 5] = 0.03125 * np.arange(192)
    weights = written(tmp_path, gate=odd)
    [note] = notes_of(weights, "w4", "w8")
    assert note.startswith("1 tensors of BF16, which the checkpoint left as floats, become w4")


def test_latent_weights_are_rounded_as_in_training(tmp_path):
    folder = tmp_path / "BitCPM-CANN-8B"
    latent = write_checkpoint(folder, small_config(), dtype="bf16")
    [note] = told(compile_model(folder, tmp_path / "out", dry_run=True))
    assert "--ternary 128" in note
    assert told(compile_model(folder, tmp_path / "out", ternary=64, dry_run=True)) == []
    weights = open_checkpoint(folder, small_config(), ternary=64)
    groups = latent[GATE].reshape(192, 2, 64)
    size = np.abs(groups).mean(-1, keepdims=True).astype(np.float16).astype(np.float32)
    expected = np.clip(np.rint(groups / size), -1, 1) * size
    assert np.array_equal(weights.rows(GATE), expected.reshape(192, 128))
    parts = weights.carried(GATE, W4, 0, 192)
    assert parts and np.array_equal(W4.dequantize(parts), weights.rows(GATE))
    for wrong in (48, 128):  # down_proj has 192 columns
        with pytest.raises(CheckpointError, match=f"--ternary {wrong}: tensor .* such as 128"):
            open_checkpoint(folder, small_config(), ternary=wrong)
