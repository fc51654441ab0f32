"""Scaled RoPE in GGUF files: what keys and lists stand for, beside transformers and llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_model import forward
from test_gguf import write_gguf

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint.gguf import open_gguf
from minicpm_mlc.compile.config.model_config import ModelConfig

gguf = pytest.importorskip("gguf", reason="writes the files: pip install gguf")

CONTEXT, ORIGINAL, HEADS = 256, 64, (4, 2, 32)
PAIRS = HEADS[2] // 2
ROPE = gguf.Keys.Rope
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
YARN_KEYS = {
    ROPE.SCALING_TYPE: "yarn",
    ROPE.SCALING_FACTOR: 4.0,
    ROPE.SCALING_ORIG_CTX_LEN: ORIGINAL,
}
BETAS = {ROPE.SCALING_YARN_BETA_FAST: 16.0, ROPE.SCALING_YARN_BETA_SLOW: 2.0}
# what llama.cpp's converter writes for each `rope_scaling` of config.json
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "type none": ({}, {ROPE.SCALING_TYPE: "none", ROPE.SCALING_FACTOR: 4.0}),
    "linear": (
        {"rope_type": "linear", "factor": 2.5},
        {ROPE.SCALING_TYPE: "linear", ROPE.SCALING_FACTOR: 2.5},
    ),
    "no type": ({"rope_type": "linear", "factor": 2.5}, {ROPE.SCALING_FACTOR: 2.5}),
    "llama3": (
        {"rope_type": "llama3", "original_max_position_embeddings": ORIGINAL, **LLAMA3},
        {ROPE.SCALING_TYPE: "linear", ROPE.SCALING_FACTOR: 1.0},
    ),
    "yarn": ({"rope_type": "yarn", **YARN}, YARN_KEYS),
    "yarn with betas": (
        {"rope_type": "yarn", **YARN, "beta_fast": 16.0, "beta_slow": 2.0},
        YARN_KEYS | BETAS | {ROPE.SCALING_YARN_EXT_FACTOR: 1.0},
    ),
    "yarn with a scale": (
        {"rope_type": "yarn", **YARN, "attention_factor": 1.25},
        YARN_KEYS | {ROPE.SCALING_YARN_ATTN_FACTOR: 1.25, ROPE.SCALING_YARN_LOG_MUL: 0.0},
    ),
}


def written(folder: Path, case: str) -> Path:
    scaling, keys = CASES[case]
    lists = {"rope_freqs.weight": frequencies()} if scaling.get("rope_type") == "llama3" else {}
    named = {key.format(arch="llama"): value for key, value in keys.items()}
    sizes = {"llama.attention.key_length": HEADS[2], "llama.attention.value_length": HEADS[2]}
    return write_gguf(folder / "m.gguf", "llama", "F16", heads=HEADS, lists=lists, **sizes, **named)


def frequencies() -> np.ndarray:
    """Llama 3's divisors of the rotary frequencies, as the converter computes them."""
    found = []
    for pair in range(PAIRS):
        wave = 2 * np.pi * 10000 ** (pair / PAIRS)
        low, high = ORIGINAL / LLAMA3["low_freq_factor"], ORIGINAL / LLAMA3["high_freq_factor"]
        smooth = (ORIGINAL / wave - 1) / (LLAMA3["high_freq_factor"] - 1)
        between = 1 / ((1 - smooth) / LLAMA3["factor"] + smooth)
        found.append(1 if wave < high else LLAMA3["factor"] if wave > low else between)
    assert 1 < np.unique(np.round(found, 3)).size - 2  # some lie between
    return np.array(found, np.float32)


def transformers_rope(scaling: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Radians per token of each pair, and what cos and sin are multiplied by."""
    transformers = pytest.importorskip("transformers")
    rope = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS
    config = transformers.LlamaConfig(
        hidden_size=HEADS[0] * HEADS[2],
        num_attention_heads=HEADS[0],
        head_dim=HEADS[2],
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"} | scaling,
    )
    if scaling:
        inverse, scale = rope[scaling["rope_type"]](config, "cpu")
        return inverse.numpy(), scale
    return 10000.0 ** -(np.arange(PAIRS) / PAIRS), 1.0


@pytest.mark.parametrize("case", CASES)
def test_it_turns_by_what_transformers_has_for_the_same_model(tmp_path: Path, case: str) -> None:
    config = open_gguf(written(tmp_path, case)).config
    inverse, scale = transformers_rope(CASES[case][0])
    np.testing.assert_allclose(config.inv_freq, inverse, rtol=1e-5)
    assert config.rope_attention_scale == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("case", ["linear", "no type", "llama3", "yarn"])
def test_logits_are_those_of_llama_cpp(tmp_path: Path, case: str) -> None:
    api = pytest.importorskip("llama_cpp")
    path = written(tmp_path, case)
    ids = np.random.default_rng(0).integers(3, 200, CONTEXT - 1).tolist()
    peer = api.Llama(str(path), n_ctx=CONTEXT, n_threads=1, logits_all=True, verbose=False)
    peer.eval(ids)
    opened = open_gguf(path)
    weights = {name: opened.weights.rows(name) for name in opened.weights.names()}

    def error(config: ModelConfig) -> float:
        expected = forward(config, weights, ids, [False] * len(ids))
        return float(np.abs(peer.scores[: len(ids)] - expected).max() / expected.std())

    plain = (1.0,) * PAIRS
    found = error(opened.config)
    assert found < 0.02 and error(replace(opened.config, rope_factors=plain)) > 3 * found
    if opened.config.rope_attention_scale != 1:
        assert error(replace(opened.config, rope_attention_scale=1.0)) > 3 * found


def test_lists_beside_another_scaling_are_refused(tmp_path: Path) -> None:
    lists = {"rope_freqs.weight": np.full(PAIRS, 2, np.float32)}
    keys = {key.format(arch="llama"): value for key, value in YARN_KEYS.items()}
    path = write_gguf(tmp_path / "m.gguf", heads=HEADS, lists=lists, **keys)
    with pytest.raises(CheckpointError, match="scales RoPE as 'yarn' and by rope_freqs"):
        open_gguf(path)
    path = write_gguf(tmp_path / "m.gguf", lists={"rope_factors_long.weight": lists.popitem()[1]})
    with pytest.raises(CheckpointError, match="scales RoPE as None and by rope_factors_long"):
        open_gguf(path)
