"""config.json to ModelConfig: both published forms, what is refused by name, and what passes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, config_json, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm_mlc.base.errors import CheckpointError, ConfigError
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.model.registry import read_config, read_config_folder
from minicpm_mlc.ops.select_blocks import select_blocks_definition

MINICPM = config_json(tiny_config("MiniCPM4-8B"))
LLAMA = config_json(tiny_config("MiniCPM5-1B"))
QWEN3 = {key: value for key, value in LLAMA.items() if not key.startswith("rope")} | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
}
SPARSE = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 2048,
    "topk": 64,
}


def read(base=MINICPM, **changes) -> ModelConfig:
    return read_config({**base, **changes}, "tiny")


def read_rope(**changes) -> ModelConfig:
    return read(rope_scaling={**MINICPM["rope_scaling"], **changes})


def without(*keys: str) -> dict:
    return {key: value for key, value in MINICPM.items() if key not in keys}


@pytest.mark.parametrize("form", ["remote", "native"])
@pytest.mark.parametrize("preset", TINY)
def test_every_family_is_read_in_both_published_forms(preset, form):
    config = tiny_config(preset)
    assert read_config(config_json(config, form), preset) == config


def test_architecture_alone_is_enough_and_absent_keys_have_the_published_defaults():
    sparse_keys = ("model_type", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "hidden_act")
    config = read_config(without(*sparse_keys), "0.5B")
    assert (config.model_type, config.rope_theta, config.rms_norm_eps) == (
        "minicpm4",
        10000.0,
        1e-6,
    )
    assert config.tie_word_embeddings is True
    del (llama := dict(LLAMA))["tie_word_embeddings"]
    assert read_config(llama, "llama").tie_word_embeddings is False


def test_eos_may_be_one_id_or_a_list():
    assert read(eos_token_id=7).eos_token_ids == (7,)
    assert read(eos_token_id=[2, 300]).eos_token_ids == (2, 300)


def test_rope_type_has_an_older_spelling():
    rope = {**MINICPM["rope_scaling"], "type": "su"}
    del rope["rope_type"]
    assert read(rope_scaling=rope) == read()


def test_without_rope_scaling_every_factor_is_one():
    assert set(read(rope_scaling=None).rope_factors) == {1.0}
    assert read(LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 5e6}) == read(LLAMA)


@pytest.mark.parametrize("place", ["rope", "top"])
def test_cos_and_sin_grow_beyond_the_original_context(place):
    rope = {**MINICPM["rope_scaling"], "original_max_position_embeddings": 65536}
    outer = {}
    if place == "top":
        outer["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
    config = read(max_position_embeddings=131072, rope_scaling=rope, **outer)
    assert config.rope_attention_scale == pytest.approx(
        math.sqrt(1 + math.log(2) / math.log(65536))
    )
    assert config.rope_attention_scale == pytest.approx(1.0308, abs=5e-5)


def test_inv_freq_divides_by_the_factors_in_float64():
    config = tiny_config("MiniCPM4-0.5B")
    expected = [1 / (f * 10000.0 ** (2 * i / 64)) for i, f in enumerate(config.rope_factors)]
    assert config.inv_freq.dtype == np.float32
    np.testing.assert_array_equal(config.inv_freq, np.array(expected).astype(np.float32))


def test_null_scalings_are_one():
    config = read(scale_depth=None, dim_model_base=None)
    assert (config.residual_scale, config.logit_scale) == (1.0, 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "pretraining_tp": 1},
        {
            "torch_dtype": "float16",
            "attention_dropout": 0.1,
            "initializer_range": 0.5,
            "mup_denominator": 32,
        },
        {"_name_or_path": "somewhere", "_attn_implementation": "sdpa", "pad_token_id": 2},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"some_future_switch": False, "some_future_option": None, "some_future_list": []},
        {"num_experts": 0, "partial_rotary_factor": 1.0, "quantization_config": None},
        {"rope_scaling": {**MINICPM["rope_scaling"], "factor": 1.0}},
    ],
)
def test_harmless_keys_change_nothing(changes):
    assert read(**changes) == read()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("num_experts", 8),
        ("qk_norm", True),
        ("attn_use_output_gate", True),
        ("attn_use_rope", False),
        ("mixer_types", ["minicpm4", "lightning-attn"]),
        ("sliding_window", 4096),
        ("partial_rotary_factor", 0.5),
        ("lightning_nh", 32),
        ("use_nope", True),
        ("draft_vocab_size", 32000),
        ("a_key_of_tomorrow", 1),
        ("pretraining_tp", 2),
    ],
)
def test_keys_that_change_the_maths_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key):
        read(**{key: value})


def test_llama_with_mup_scalings_is_refused():
    with pytest.raises(ConfigError, match="scale_emb"):
        read(LLAMA, scale_emb=12)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", None, 3])
def test_other_rope_scalings_are_refused(kind):
    with pytest.raises(ConfigError, match="rope_type"):
        read_rope(rope_type=kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "yarn"}, "rope_type"),
        ({"short_factor": [1.0] * 32}, "short_factor has 32 factors, expected 64"),
        ({"long_factor": [2.0] * 64}, "short_factor and long_factor differ"),
        ({"long_factor": [1.0] * 63 + [0.0]}, "long_factor must be a list of positive numbers"),
        ({"long_factor": [1.0] * 63 + [math.nan]}, "long_factor must be"),
        ({"long_factor": None}, "long_factor must be"),
        ({"factor": 4.0}, "factor is 4.0, expected 1"),
        ({"attention_factor": 1.2}, "attention_factor is 1.2, expected 1"),
        ({"beta_fast": 32}, "beta_fast"),
        ({"rope_theta": 5e6}, "rope_theta"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
    ],
)
def test_damaged_longrope_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_rope(**changes)


def test_two_different_rope_settings_are_refused():
    with pytest.raises(ConfigError, match="rope_parameters are both given and differ"):
        read(rope_parameters={"rope_type": "default"})


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "scale_emb",
    ],
)
def test_missing_keys_are_named(key):
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        read_config(without(key), "tiny")


def test_the_first_config_of_minicpm4_8b_has_the_familys_dim_model_base():
    assert read_config(without("dim_model_base"), "MiniCPM4-8B").dim_model_base == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": True}, "num_hidden_layers is true, expected a whole number"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"vocab_size": "323"}, 'vocab_size is "323"'),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a positive number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 16, expected a multiple of 3"),
        ({"hidden_size": 2056, "head_dim": 128}, "hidden_size is 2056, expected a multiple of 32"),
        ({"hidden_size": 2056}, "not a multiple of num_attention_heads"),
        ({"intermediate_size": 100}, "intermediate_size is 100"),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"eos_token_id": [2, 323]}, "eos_token_id 323 is outside the vocabulary of 323"),
        ({"bos_token_id": 400}, "bos_token_id 400"),
        ({"scale_depth": "1.4"}, "scale_depth"),
        ({"scale_emb": math.inf}, "scale_emb is Infinity, expected a positive number"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"model_type": "llama"}, "is not supported"),
        (
            {"model_type": "minicpm", "architectures": ["MiniCPM3ForCausalLM"]},
            "MiniCPM3ForCausalLM",
        ),
        (
            {"model_type": None, "architectures": None},
            "is not supported, expected one of MiniCPMForCausalLM",
        ),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


def test_sparse_config_is_kept_and_survives_the_manifest():
    config = read(sparse_config={**SPARSE, "dense_len": 512, "topk": 4, "window_size": 128})
    assert config.sparse == SparseConfig(dense_len=512, topk=4, window_size=128)
    assert ModelConfig.from_manifest(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_stride": 32}, "ratio 2 : 1 : 4"),
        ({"block_size": 128}, "ratio 2 : 1 : 4"),
        ({"window_size": 100}, "window_size 100"),
        ({"topk": 0}, "topk is 0"),
        ({"topk": 2, "init_blocks": 2}, "topk 2 must exceed init_blocks 2"),
        ({"dense_len": -2}, "dense_len is -2"),
        ({"use_nope": 1}, "use_nope is 1"),
        ({"pooling": "max"}, "pooling"),
    ],
)
def test_inconsistent_sparse_config_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(sparse_config={**SPARSE, **changes})


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(0, 60),
    st.integers(0, 59),
    st.randoms(use_true_random=False),
)
def test_a_budget_cut_to_the_context_chooses_the_same_blocks(blocks, topk, local, init, random):
    whole = SparseConfig(topk=topk, window_size=64 * local, init_blocks=min(init, topk - 1))
    cut = whole.within(64 * blocks - random.randrange(64))
    positions = np.array([random.randrange(64 * blocks), 64 * blocks - 1])
    pooled = np.array([[[random.random() for _ in range(blocks)]]] * 2)

    def chosen(sparse: SparseConfig) -> list[list[int]]:
        rows = select_blocks_definition(
            pooled, positions, sparse.topk, sparse.window_size // 64, sparse.init_blocks
        )
        return [[block for block in row if block >= 0] for row in rows[:, 0].tolist()]

    assert chosen(cut) == chosen(whole)
    assert cut.init_blocks < cut.topk and cut.topk + cut.window_size // 64 <= blocks
    assert cut == whole or cut.topk + cut.window_size // 64 == blocks


def test_window_counts():
    sparse = SparseConfig()
    fine = {31: 0, 32: 1, 47: 1, 48: 2, 8192: 511, 131072: 8191}
    coarse = {127: 0, 128: 1, 8192: 127, 131072: 2047}
    assert {n: sparse.num_windows(n) for n in fine} == fine
    assert {n: sparse.num_coarse_windows(n) for n in coarse} == coarse


def test_manifest_with_missing_or_unknown_fields_is_refused():
    values = read().to_dict()
    with pytest.raises(ConfigError, match="head_dim"):
        ModelConfig.from_manifest(
            {key: value for key, value in values.items() if key != "head_dim"}
        )
    with pytest.raises(ConfigError, match="colour"):
        ModelConfig.from_manifest({**values, "colour": "blue"})


def test_folder_gives_the_name(tmp_path):
    folder = tmp_path / "MiniCPM-tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MINICPM))
    assert read_config_folder(folder) == replace(tiny_config("MiniCPM4-8B"), name="MiniCPM-tiny")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"null"])
def test_damaged_config_json_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config_folder(tmp_path)


def test_folder_without_config_and_no_folder_at_all(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        read_config_folder(tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        read_config_folder(tmp_path / "nowhere")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.sampled_from([MINICPM, LLAMA]), st.sampled_from(sorted(MINICPM)), JSON)
def test_any_value_gives_a_config_or_a_config_error(base, key, value):
    try:
        config = read(base, **{key: value})
    except ConfigError as error:
        assert str(error)
    else:
        assert ModelConfig.from_manifest(config.to_dict()) == config
        assert np.isfinite(config.inv_freq).all()


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.sampled_from(sorted(MINICPM["rope_scaling"])), JSON)
def test_any_rope_value_gives_a_config_or_a_config_error(key, value):
    try:
        assert len(read_rope(**{key: value}).rope_factors) == 64
    except ConfigError as error:
        assert str(error)


# ---- rope as transformers has it, whatever the model


ROPES = [
    {"factor": factor, "original_max_position_embeddings": original, "attention_factor": scale}
    for factor in (None, 1.0, 1, 2.0, 4.0)
    for original in (None, 32768, 65536)
    for scale in (None, 1.0, 1.2)
]


@pytest.mark.parametrize("model_type", ["minicpm", "llama", "qwen3"])
@pytest.mark.parametrize("longest", [32768, 65536])
def test_longrope_means_the_same_for_every_model_and_what_it_means_to_transformers(
    model_type, longest
):
    base = {"minicpm": MINICPM, "llama": LLAMA, "qwen3": QWEN3}[model_type]
    factors = [1.0 + i / 8 for i in range(64)]
    same = 0
    for keys in ROPES:
        rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
        rope |= {key: value for key, value in keys.items() if value is not None}
        values = {"head_dim": 128, "max_position_embeddings": longest, "rope_theta": 1e4}
        expected, scale = transformers_longrope(values | {"rope_parameters": rope})
        try:
            config = read(base, **values, rope_scaling=rope, rope_parameters=None)
        except ConfigError as error:
            assert "factor" in str(error)  # refused, never read otherwise
            continue
        same += 1
        assert config.rope_attention_scale == pytest.approx(scale, rel=1e-12), rope
        np.testing.assert_allclose(config.inv_freq, expected, rtol=1e-6)
    assert same >= 12


ORIGINAL = "original_max_position_embeddings"
SCALED: dict[str, list[dict[str, Any]]] = {
    "linear": [{"factor": 4.0}, {"factor": 1}],
    "llama3": [
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 8192},
        {"factor": 32, "low_freq_factor": 1, "high_freq_factor": 32, ORIGINAL: 16384},
    ],
    "yarn": [
        {"factor": 4.0, ORIGINAL: 32768},
        {"factor": 4.0},
        {"factor": 40, ORIGINAL: 4096, "mscale": 1.0, "mscale_all_dim": 0.707},
        {"factor": 8.0, ORIGINAL: 8192, "beta_fast": 64, "beta_slow": 2, "attention_factor": 1.3},
        {"factor": 16.0, ORIGINAL: 4096, "truncate": False},
    ],
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_scaled_rope_is_what_transformers_computes(kind, theta):
    for keys in SCALED[kind]:
        rope = {"rope_type": kind, "rope_theta": theta, **keys}
        values = {"head_dim": 64, "max_position_embeddings": 131072, "rope_theta": theta}
        expected, scale = transformers_rope(kind, values | {"rope_parameters": rope})
        for place in ("rope_parameters", "rope_scaling"):
            config = read(LLAMA, **values, **{"rope_scaling": None, place: rope})
            assert config.rope_attention_scale == pytest.approx(scale, rel=1e-12), rope
            np.testing.assert_allclose(config.inv_freq, expected, rtol=2e-6)
            assert config.max_position_embeddings == 131072


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type is .*expected default, longrope"),
        ({"rope_type": "proportional"}, "rope_type is"),
        ({"rope_type": "linear"}, "of rope_type linear: factor is missing"),
        ({"rope_type": "linear", "factor": 0}, "factor is 0, expected a positive number"),
        ({"rope_type": "yarn", "factor": 4, "beta_fast": "x"}, "beta_fast is"),
        ({"rope_type": "yarn", "factor": 4, "new": 1}, "new = 1 is not implemented"),
        ({"rope_type": "yarn", "factor": 4, ORIGINAL: 1}, f"{ORIGINAL} is 1, expected a whole"),
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4},
            "low_freq_factor is 4",
        ),
    ],
)
def test_other_and_damaged_scalings_are_refused_by_name(rope, message):
    with pytest.raises(ConfigError, match=message):
        read(LLAMA, rope_scaling=rope)


def transformers_longrope(values: dict) -> tuple[np.ndarray, float]:
    """inv_freq and the scale of cos and sin."""
    return transformers_rope("longrope", values)


def transformers_rope(kind: str, values: dict) -> tuple[np.ndarray, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**values, num_attention_heads=16, hidden_size=2048)
    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return inv_freq.numpy(), scale


def test_longrope_of_factor_one_is_not_scaled_beyond_its_original_context():
    rope = {**MINICPM["rope_scaling"], "factor": 1.0, "original_max_position_embeddings": 32768}
    for base in (MINICPM, LLAMA):
        config = read(base, max_position_embeddings=65536, rope_scaling=rope)
        assert config.rope_attention_scale == 1.0


def test_two_different_original_contexts_are_refused():
    rope = {**MINICPM["rope_scaling"], "original_max_position_embeddings": 16384}
    with pytest.raises(ConfigError, match=r"is 16384, expected 32768, as beside .*; keep one"):
        read(rope_scaling=rope, original_max_position_embeddings=32768)


# ---- tokens that begin and end a text


def test_case_44_null_means_that_there_is_none():
    config = read(LLAMA, bos_token_id=None, eos_token_id=None)
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())
    assert ModelConfig.from_manifest(config.to_dict()) == config


@pytest.mark.parametrize(
    "base, bos, eos", [("minicpm", 1, (2,)), ("llama", 1, (2,)), ("qwen3", None, ())]
)
def test_absent_tokens_are_those_of_the_published_class(base, bos, eos):
    values = {"minicpm": MINICPM, "llama": LLAMA, "qwen3": QWEN3}[base]
    values = {k: v for k, v in values.items() if k not in ("bos_token_id", "eos_token_id")}
    config = read_config(values, "tiny")
    assert (config.bos_token_id, config.eos_token_ids) == (bos, eos)


# ---- the model's name


@pytest.mark.parametrize(
    "folder, name",
    [
        ("models--openbmb--MiniCPM4-0.5B/snapshots/5253c7f8a1b2", "MiniCPM4-0.5B"),
        ("models--MiniCPM4-0.5B/snapshots/main", "MiniCPM4-0.5B"),
        ("models/OpenBMB/MiniCPM4___1-8B", "MiniCPM4.1-8B"),
        ("mine/snapshots/7", "7"),
        ("checkpoints/MiniCPM4-8B", "MiniCPM4-8B"),
    ],
)
def test_case_66_a_hub_caches_folder_is_named_after_its_model(tmp_path, folder, name):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "config.json").write_text(json.dumps(MINICPM))
    assert read_config_folder(tmp_path / folder).name == name
