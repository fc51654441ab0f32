"""The quality bench: the real model leaves its grid and stays the same function, and what is said
about a variant is right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import off_grid
import pytest
import quality
from checkpoints import tiny_config
from numpy_model import forward

from minicpm_mlc.bench.divergence import Comparison, TextQuality, log_probabilities
from minicpm_mlc.compile.checkpoint import RandomCheckpoint

pytest.importorskip("gguf")


def test_off_the_grid_the_function_is_the_same():
    config = tiny_config("MiniCPM5-1B", tie_word_embeddings=True)
    source = RandomCheckpoint(config)
    weights = {name: source.rows(name) for name in source.names()}
    moved = {name: rows.copy() for name, rows in weights.items()}
    fields = {
        "llama.block_count": config.num_layers,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
    }
    off_grid.off_grid(moved, fields)
    same = [name for name in weights if np.array_equal(moved[name], weights[name])]
    assert same == ["model.embed_tokens.weight"] and len(moved) == len(weights) + 1
    ids = [5, 9, 200, 17, 5]
    own, exact = (forward(config, w, ids, [False] * len(ids)) for w in (moved, weights))
    assert np.abs(own - exact).max() < 1e-4 * np.abs(exact).max()


def test_channels_of_zeros_leave_the_function():
    config = tiny_config("MiniCPM5-1B", tie_word_embeddings=True, num_heads=6, num_kv_heads=3)
    source = RandomCheckpoint(config)
    weights = {name: source.rows(name) for name in source.names()}
    wider = dict(weights)
    fields = {
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 3,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    off_grid.padded(wider, fields, 256)
    assert all(array.shape[-1] % 256 == 0 for array in wider.values())
    padded = replace(
        config,
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_heads=fields["llama.attention.head_count"],
        num_kv_heads=fields["llama.attention.head_count_kv"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
    )
    ids = [5, 9, 200, 17, 5]
    own = forward(padded, wider, ids, [False] * len(ids))
    exact = forward(config, weights, ids, [False] * len(ids))
    assert np.abs(own - exact).max() < 1e-4 * np.abs(exact).max()


def test_divergence_agreement_and_perplexity():
    exact = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    own = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    comparison = Comparison("text", [0, 1])
    for row in range(2):  # however they are cut
        comparison.add(own[row : row + 1], exact[row : row + 1])
    result = comparison.result()
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert result.divergence == pytest.approx(first / 2)
    assert result.perplexity == pytest.approx(1 / 0.75)
    assert result.reference_perplexity == pytest.approx(2)
    assert result.agreement == 0.5


def test_log_probabilities_of_large_logits():
    found = log_probabilities(np.array([[1000.0, 1000.0]], np.float32))
    assert np.allclose(found, np.log(0.5))


def test_the_table_has_ratios_to_plain_w4():
    rows = [
        quality.Row(name, weights, bits, [TextQuality("a", 10, kl, 0.5, 7.0, 6.0)])
        for name, weights, bits, kl in (
            ("f32", 8_000_000, 32.0, 0.0),
            ("w4", 1_125_000, 4.5, 0.4),
            ("w4, calibrated", 1_125_000, 4.5, 0.1),
        )
    ]
    table = quality.cells(rows)
    assert table[0][-1] == "of w4's KL" and table[-1][-1] == "0.25"
    assert table[2][:4] == ["w4", "1.1", "4.50", "0.4000"]


def test_a_row_is_measured_once_and_again_when_its_bundle_changed(tmp_path):
    calls = []

    def measured() -> Any:
        calls.append(1)
        return quality.Row("w4", 10, 4.5, [TextQuality("a", 10, 0.4, 0.5, 7.0, 6.0)])

    first, second, other = (
        quality.kept(tmp_path, ("w4", manifest, {"a": [1, 2]}), measured) for manifest in "xxy"
    )
    assert first == second == other == measured() and len(calls) == 3


def test_the_same_model_as_a_minicpm_with_sparse_attention():
    config = tiny_config("MiniCPM5-1B")
    dense = {"num_hidden_layers": config.num_layers, "hidden_size": config.hidden_size}
    made = off_grid.as_minicpm(dense)
    assert made["scale_depth"] ** 2 == pytest.approx(config.num_layers)
    assert made["dim_model_base"] == config.hidden_size and made["sparse_config"]["topk"] == 64
