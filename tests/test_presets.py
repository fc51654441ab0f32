"""The presets against the published numbers: factor lists, RoPE angles, parameter counts, memory
per token.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import PUBLISHED_ROPE, config_json

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.compile.config import rope_lists
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.config.rope_lists import FACTORS_8B_128K, FACTORS_41_8B_128K
from minicpm_mlc.compile.model.registry import (
    count_parameters,
    published_tensors,
    read_config,
    sparse_settings,
    with_context,
)


@pytest.mark.parametrize(
    ("computed", "model", "kind"),
    [
        (rope_lists.FACTORS_8B, "MiniCPM4-8B", "native"),
        (FACTORS_8B_128K, "MiniCPM4-8B", "128K"),
        (rope_lists.FACTORS_41_8B, "MiniCPM4.1-8B", "native"),
        (FACTORS_41_8B_128K, "MiniCPM4.1-8B", "128K"),
    ],
)
def test_factor_formulas_give_the_published_lists(computed, model, kind):
    np.testing.assert_allclose(computed, PUBLISHED_ROPE[model][kind], rtol=1e-15, atol=0)


def test_half_billion_list_rises_smoothly_over_32_pairs():
    factors = np.array(rope_lists.FACTORS_05B)
    assert factors.shape == (32,) and (np.diff(factors) > 0).all()
    # symmetric like the 8B lists, which catches a mistyped number
    np.testing.assert_allclose(factors + factors[::-1], factors[0] + factors[-1], rtol=2e-6)


@pytest.mark.parametrize(
    ("pair", "cos", "sin"),
    [
        (0, 0.2942175021533906, -0.9557384900832547),
        (1, -0.4305646386043557, -0.902559744273752),
        (63, 0.9999999998268125, 1.8611153426248152e-05),
    ],
)
def test_rope_angles_at_position_5_are_the_published_ones(pair, cos, sin):
    angle = 5 * float(PRESETS["MiniCPM4-8B"].inv_freq[pair])
    assert math.cos(angle) == pytest.approx(cos, abs=5e-7)
    assert math.sin(angle) == pytest.approx(sin, rel=5e-7)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("MiniCPM4-0.5B", 433_873_920),
        ("MiniCPM4-8B", 8_185_253_888),
        ("MiniCPM4.1-8B", 8_185_253_888),
    ],
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    assert count_parameters(PRESETS[name]) == parameters


def test_minicpm5_2b_fills_its_published_file():
    header = 5_033_557_096 - 2 * count_parameters(PRESETS["MiniCPM5-2B"])  # bytes beside the bf16
    assert 0 < header < 150 * len(published_tensors(PRESETS["MiniCPM5-2B"]))


@pytest.mark.parametrize(
    ("name", "per_token"), [("MiniCPM4-0.5B", 12_288), ("MiniCPM4-8B", 32_768)]
)
def test_kv_bytes_per_token_in_float16(name, per_token):
    assert PRESETS[name].kv_bytes_per_token(2) == per_token


def test_scalings_per_model():
    scaled = {
        "MiniCPM4-0.5B": (0.2857738033, 1 / 4),
        "MiniCPM4-8B": (0.2474873734, 1 / 16),
        "MiniCPM4.1-8B": (0.2474873734, 1 / 16),
        "MiniCPM-SALA": (0.2474873734, 1 / 16),
    }
    expected = dict.fromkeys(PRESETS, (1.0, 1.0)) | scaled
    found = {name: (config.residual_scale, config.logit_scale) for name, config in PRESETS.items()}
    assert {name: pytest.approx(pair, abs=1e-10) for name, pair in expected.items()} == found


def test_minicpm5_queries_are_wider_than_its_hidden_state():
    assert published_tensors(PRESETS["MiniCPM5-1B"])["model.layers.0.self_attn.q_proj.weight"] == (
        2048,
        1536,
    )


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_preset_is_consistent_and_survives_the_manifest(config):
    assert len(config.rope_factors) == config.head_dim // 2
    assert ModelConfig.from_manifest(config.to_dict()) == config


def test_longer_contexts_take_the_published_128k_lists():
    for name, longer in (("MiniCPM4-8B", FACTORS_8B_128K), ("MiniCPM4.1-8B", FACTORS_41_8B_128K)):
        preset = PRESETS[name]
        assert with_context(preset, preset.max_position_embeddings) is preset
        extended = with_context(preset, 100_000)
        assert extended.rope_factors == longer and extended.max_position_embeddings == 131072
        assert extended.rope_attention_scale == 1.0
        with pytest.raises(ConfigError, match="131072"):
            with_context(preset, 131073)


@pytest.mark.parametrize("kind", ["native", "128K"])
@pytest.mark.parametrize("name", PUBLISHED_ROPE)
def test_configs_as_published_or_edited_as_the_readme_says_reach_128k(name: str, kind: str):
    """The README's recipe changes the lists alone, so cos and sin keep their scale of 1."""
    published = replace(PRESETS[name], rope_factors=tuple(PUBLISHED_ROPE[name][kind]))
    assert published.rope_factors != PRESETS[name].rope_factors, (
        "the decimals are not the formula's floats"
    )
    read = read_config(config_json(published), name)
    assert read == published
    extended = with_context(read, 131072)
    assert extended == with_context(PRESETS[name], 131072)
    np.testing.assert_allclose(
        extended.rope_factors, PUBLISHED_ROPE[name]["128K"], rtol=1e-15, atol=0
    )
    assert extended.max_position_embeddings == 131072 and extended.rope_attention_scale == 1.0


def test_a_list_of_another_model_reaches_no_further():
    strange = [*PUBLISHED_ROPE["MiniCPM4-8B"]["native"][:-1], 31.1]
    with pytest.raises(ConfigError, match="reaches 32768 tokens"):
        with_context(replace(PRESETS["MiniCPM4-8B"], rope_factors=tuple(strange)), 131072)


def test_only_the_8b_models_were_trained_for_sparse_attention():
    trained = {name: sparse_settings(preset) for name, preset in PRESETS.items()}
    assert trained["MiniCPM4-8B"] == trained["MiniCPM4.1-8B"] == SparseConfig()
    assert trained["MiniCPM4-0.5B"] is trained["MiniCPM5-1B"] is None
