"""MiniCPM-SALA against float64 NumPy written from its description: sums over all earlier tokens in
place of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from numpy_model import attention, rms_norm, rotate

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CheckpointError, CompileError, ConfigError, EngineError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.model.minicpm_sala import decays
from minicpm_mlc.compile.model.registry import count_parameters, read_config

LENGTH = 500
SPARSE = SparseConfig(init_blocks=1, window_size=64, topk=3, dense_len=384)  # 4 of 8 blocks
TINY = replace(
    PRESETS["MiniCPM-SALA"],
    vocab_size=323,
    hidden_size=96,
    intermediate_size=160,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    rope_factors=(1.0,) * 16,
    max_position_embeddings=1024,
    eos_token_ids=(2,),
    sparse=SPARSE,
    lightning_layers=(1, 2),
)

# config.json of MiniCPM-SALA as published
PUBLISHED: dict[str, Any] = {
    "architectures": ["MiniCPMSALAForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_use_output_gate": True,
    "attn_use_rope": False,
    "auto_map": {"AutoConfig": "configuration_minicpm_sala.MiniCPMSALAConfig"},
    "bos_token_id": 1,
    "dim_model_base": 256,
    "dtype": "bfloat16",
    "eos_token_id": [2, 73440],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.1,
    "intermediate_size": 16384,
    "lightning_head_dim": 128,
    "lightning_nh": 32,
    "lightning_nkv": 32,
    "lightning_scale": "1/sqrt(d)",
    "lightning_use_rope": True,
    "max_position_embeddings": 524288,
    "mixer_types": [
        "minicpm4" if i in (0, 9, 16, 17, 22, 29, 30, 31) else "lightning-attn" for i in range(32)
    ],
    "model_type": "minicpm_sala",
    "mup_denominator": 32,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "qk_norm": True,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "shift_labels": True,
    "sparse_config": asdict(SparseConfig()),
    "tie_word_embeddings": False,
    "transformers_version": "4.57.1",
    "use_cache": True,
    "use_output_gate": True,
    "use_output_norm": True,
    "vocab_size": 73448,
}
long = pytest.mark.campaign  # each compiles once more


def config_json(config: ModelConfig) -> dict[str, Any]:
    kinds = ["minicpm4", "lightning-attn"]
    heads = {"lightning_nh": config.num_heads, "lightning_nkv": config.num_heads}
    kept = ("architectures", "model_type", "attn_use_output_gate", "attn_use_rope", "qk_norm")
    kept += ("lightning_scale", "lightning_use_rope", "use_output_gate", "use_output_norm")
    return {key: PUBLISHED[key] for key in (*kept, "rope_scaling")} | {
        **heads,
        "lightning_head_dim": config.head_dim,
        "mixer_types": [kinds[i in config.lightning_layers] for i in range(config.num_layers)],
    }


Tiny = tuple[Path, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tiny]:
    """tiny(device, scheme) -> a bundle, and the float32 weights that it was made from."""

    @cache
    def build(device: str = "cpu", scheme: str = "f32") -> Tiny:
        folder = tmp_path_factory.mktemp("sala")
        weights = write_checkpoint(folder / "model", TINY, dtype="f32", **config_json(TINY))
        bundle = folder / "bundle"
        compile_model(folder / "model", bundle, device=device, scheme=scheme, prefill_chunk=512)
        return bundle, weights

    return build


IDS: list[int] = np.random.default_rng(0).integers(3, TINY.vocab_size, LENGTH).tolist()


@pytest.fixture(scope="module")
def expected(tiny) -> np.ndarray:
    """Logits of IDS, all rows sparse."""
    return forward(tiny()[1], IDS, [True] * LENGTH)


def forward(weights: dict[str, np.ndarray], ids: list[int], sparse: list[bool]) -> np.ndarray:
    """Logits float64 [n, vocab]; row r attends sparsely where sparse[r]."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["model.embed_tokens.weight"][ids] * TINY.scale_emb
    for i in range(TINY.num_layers):
        at = f"model.layers.{i}."
        layer = {name.removeprefix(at): v for name, v in w.items() if name.startswith(at)}
        h = rms_norm(x, layer["input_layernorm.weight"], TINY)
        mixed = lightning(layer, h) if i in TINY.lightning_layers else gated(layer, h, sparse)
        x = x + TINY.residual_scale * mixed @ layer["self_attn.o_proj.weight"].T
        h = rms_norm(x, layer["post_attention_layernorm.weight"], TINY)
        gate, up = (h @ layer[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        down = (gate * sigmoid(gate) * up) @ layer["mlp.down_proj.weight"].T
        x = x + TINY.residual_scale * down
    return rms_norm(x, w["model.norm.weight"], TINY) * TINY.logit_scale @ w["lm_head.weight"].T


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gated(layer: dict[str, np.ndarray], h: np.ndarray, sparse: list[bool]) -> np.ndarray:
    still = replace(TINY, rope_factors=(np.inf,) * (TINY.head_dim // 2))  # no angle ever grows
    alone = layer | {"self_attn.o_proj.weight": np.eye(TINY.num_heads * TINY.head_dim)}
    mixed = attention(still, alone, h, np.arange(len(h)), sparse)
    return mixed * sigmoid(h @ layer["self_attn.o_gate.weight"].T)


def lightning(layer: dict[str, np.ndarray], h: np.ndarray) -> np.ndarray:
    n, heads, size = len(h), TINY.num_heads, TINY.head_dim
    q, k, v = (
        (h @ layer[f"self_attn.{name}_proj.weight"].T).reshape(n, heads, size) for name in "qkv"
    )
    q, k = (
        rotate(rms_norm(x, layer[f"self_attn.{name}_norm.weight"], TINY), np.arange(n), TINY)
        for x, name in ((q, "q"), (k, "k"))
    )
    ago = np.arange(n)[:, None] - np.arange(n)
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]  # ALiBi's of six heads
    kept = np.where(ago >= 0, np.exp(-np.array(slopes)[:, None, None] * np.maximum(ago, 0)), 0)
    scores = np.einsum("thd,shd->hts", q, k) * kept / np.sqrt(size)
    mixed = np.einsum("hts,shd->thd", scores, v).reshape(n, -1)
    normed = rms_norm(mixed, layer["self_attn.o_norm.weight"], TINY)
    return normed * sigmoid(h @ layer["self_attn.z_proj.weight"].T)


def test_logits_are_those_of_the_definition_dense_and_sparse(tiny, expected):
    bundle, weights = tiny()
    dense = forward(weights, IDS[:300], [False] * 300)
    assert np.abs(expected[:300] - dense).max() > 1e-2, "the case must tell the gears apart"
    with Engine(bundle) as engine:
        assert np.abs(engine.logits(IDS) - expected).max() <= 1e-4
        assert np.abs(engine.logits(IDS[:300]) - dense).max() <= 1e-4


def test_every_chunk_size_and_decode_give_the_same_logits(tiny, expected):
    with Engine(tiny()[0], attention="sparse") as engine:
        for chunk in (1, 7, 64):
            engine.prefill_chunk = chunk
            assert np.abs(engine.logits(IDS) - expected).max() <= 1e-4, chunk
        engine.truncate(0)
        rows = [engine.prefill(IDS[:5]), *(engine.decode(token) for token in IDS[5:])]
        assert np.abs(np.stack(rows) - expected[4:]).max() <= 1e-4


def test_a_cut_sequence_is_computed_again_from_its_first_token(tiny):
    other = IDS[:40] + IDS[60:90]
    with Engine(tiny()[0]) as engine:
        engine.prefill(IDS[:70])
        again = engine.logits(other)
        assert np.abs(again - forward(tiny()[1], other, [False] * 70)).max() <= 1e-4
        assert engine.manifest.recurrent
        with pytest.raises(EngineError, match="keeps state per sequence"):
            engine.open_sequence()


@long
@pytest.mark.usefixtures("vulkan_silent")
def test_a_gpu_gives_the_logits_of_the_definition(tiny, expected, device):
    with Engine(tiny(device)[0], attention="sparse") as engine:
        logits = [*engine.logits(IDS[:450]), engine.decode(IDS[450])]
    assert np.abs(logits - expected[:451]).max() <= 1e-4


@long
def test_weights_of_4_bits_and_int8_activations_run_it_too(tiny, expected):
    with Engine(tiny("cpu", "w4")[0], attention="sparse") as engine:
        found = engine.logits(IDS)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def test_the_preset_is_as_published():
    assert read_config(PUBLISHED, "MiniCPM-SALA") == PRESETS["MiniCPM-SALA"]
    assert count_parameters(PRESETS["MiniCPM-SALA"]) == 9_477_203_968
    result = compile_model("MiniCPM-SALA", random_weights=True, dry_run=True)
    need = {row["context"]: row["bytes"] for row in result.memory}
    per_token = 8 * 2 * 128 * 2 * 2 + 8 * 2 * 128 * 4 // 16  # keys and values, and means
    assert need[65536] - need[32768] == 32768 * per_token


def test_a_head_keeps_less_the_earlier_it_is():
    assert np.allclose(-np.log(decays(4)), [2**-2, 2**-4, 2**-6, 2**-8])
    assert np.allclose(-np.log(decays(6))[4:], [2**-1, 2**-3])
    assert np.allclose(-np.log(decays(32))[[0, 31]], [2**-0.25, 2**-8])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_use_rope", True),
        ("qk_norm", False),
        ("use_output_norm", False),
        ("lightning_scale", "1/d"),
        ("lightning_nh", 16),
        ("lightning_nkv", 2),
        ("lightning_head_dim", 64),
        ("mixer_types", ["minicpm4"] * 32),
        ("mixer_types", ["lightning-attn"] * 31),
        ("mixer_types", None),
        ("attention_bias", True),
        ("sparda_enabled", True),
    ],
)
def test_keys_that_ask_for_other_maths_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key):
        read_config(PUBLISHED | {key: value}, "MiniCPM-SALA")


def test_other_tensors_drafts_and_calibration_are_refused(tmp_path):
    model = tmp_path / "model"
    swapped = [*("minicpm4", "lightning-attn") * 2]
    write_checkpoint(model, TINY, **config_json(TINY) | {"mixer_types": swapped})
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.k_proj\.weight has shape"):
        compile_model(model, dry_run=True)
    with pytest.raises(CompileError, match="MiniCPM-SALA keeps state per sequence"):
        compile_model("MiniCPM-SALA", random_weights=True, draft="random-eagle3", dry_run=True)
    with pytest.raises(CompileError, match="keeps state per sequence"):
        compile_model("MiniCPM-SALA", random_weights=True, calibrate=[], dry_run=True)
