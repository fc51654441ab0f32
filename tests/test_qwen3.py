"""Qwen3 against transformers' own, from checkpoints that transformers wrote."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_tensors, write_tokenizer
from safetensors.numpy import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CheckpointError, ConfigError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.model.registry import count_parameters, read_config

VOCAB = 323  # no kernel's tile divides it
TIED = {"hidden_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
UNTIED = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128}
FORMS = {"tied": TIED | {"tie_word_embeddings": True}, "untied": UNTIED}
CHUNKS = (1, 7, 64, 2048)
Q_NORM = "model.layers.1.self_attn.q_norm.weight"

# config.json of Qwen3-8B as published
PUBLISHED: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
SMALLEST = PUBLISHED | {  # what the config.json of Qwen3-0.6B has instead
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
}


def tiny_model(**shape: Any) -> Qwen3ForCausalLM:
    """transformers' model with random weights; no two numbers of a norm are equal."""
    config = Qwen3Config(
        vocab_size=VOCAB,
        intermediate_size=320,
        num_hidden_layers=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )
    model = Qwen3ForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = noise / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 1 + 0.25 * noise
    return model


def write_checkpoint(folder: Path, model: Qwen3ForCausalLM) -> None:
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCAB)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """tiny("tied", device) -> a float32 bundle, and the model in float64 that it was made from."""

    @cache
    def build(form: str, device: str = "cpu") -> tuple[Path, Any]:
        folder, model = tmp_path_factory.mktemp(form), tiny_model(**FORMS[form])
        write_checkpoint(folder / "model", model)
        bundle = folder / "bundle"
        compile_model(
            folder / "model", bundle, device=device, scheme="f32", prefill_chunk=CHUNKS[-1]
        )
        return bundle, model.double()

    return build


def prompt(length: int) -> list[int]:
    return np.random.default_rng(0).integers(3, VOCAB, length).tolist()


@torch.no_grad()
def expected_logits(model: Qwen3ForCausalLM, ids: list[int]) -> np.ndarray:
    """float64 [n, vocab]."""
    return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_those_of_transformers(tiny, form):
    bundle, model = tiny(form)
    ids = prompt(300)
    with Engine(bundle, context=512) as engine:
        logits = engine.logits(ids)
    expected = expected_logits(model, ids)
    assert expected.std() > 0.5
    assert np.abs(logits - expected).max() <= 1e-4


@pytest.mark.usefixtures("vulkan_silent")
def test_a_gpu_gives_the_logits_of_transformers(tiny, device):
    bundle, model = tiny("untied", device)
    ids = prompt(70)
    with Engine(bundle, context=512) as engine:
        logits = [*engine.logits(ids), engine.decode(5)]
    assert np.abs(logits - expected_logits(model, [*ids, 5])).max() <= 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_greedy_tokens_equal_those_of_transformers_over_256_steps(tiny, form):
    bundle, model = tiny(form)
    ids = prompt(20)
    with Engine(bundle, context=512) as engine:
        logits = engine.prefill(ids)
        tokens = []
        for _ in range(256):
            tokens.append(int(logits.argmax()))
            logits = engine.decode(tokens[-1])
    expected = expected_logits(model, ids + tokens)[len(ids) - 1 : -1].argmax(-1)
    assert tokens == expected.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_every_chunk_size_and_decode_give_the_same_logits(tiny, form):
    bundle, model = tiny(form)
    ids = prompt(200)
    expected = expected_logits(model, ids)
    with Engine(bundle, context=512) as engine:
        for chunk in CHUNKS:
            engine.prefill_chunk = chunk
            assert np.abs(engine.logits(ids) - expected).max() <= 1e-4, chunk
        engine.truncate(0)
        decoded = [engine.prefill(ids[:5]), *(engine.decode(token) for token in ids[5:])]
        assert np.abs(np.stack(decoded) - expected[4:]).max() <= 1e-4


def test_the_norms_of_heads_decide_the_logits():
    """So that the comparisons above would see them missing."""
    model, ids = tiny_model(**UNTIED).double(), prompt(50)
    with_norms = expected_logits(model, ids)
    for name, weight in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.data = weight.data.roll(1)
    assert np.abs(expected_logits(model, ids) - with_norms).max() > 0.01


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_missing_or_extra_tensor_is_refused(tmp_path, change):
    write_checkpoint(tmp_path, tiny_model(**UNTIED))
    tensors = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del tensors[Q_NORM]
    else:
        tensors["model.layers.1.self_attn.q_proj.bias"] = np.ones(1024, np.float32)
    write_tensors(tmp_path, tensors, "f32")
    message = f"{Q_NORM} is missing" if change == "missing" else "q_proj.bias is not part"
    with pytest.raises(CheckpointError, match=message):
        compile_model(tmp_path, tmp_path / "out", scheme="f32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "published", "parameters"),
    [("Qwen3-8B", PUBLISHED, 8_190_735_360), ("Qwen3-0.6B", SMALLEST, 596_049_920)],
)
def test_presets_are_as_published(name, published, parameters):
    assert read_config(published, name) == PRESETS[name]
    assert count_parameters(PRESETS[name]) == parameters


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention"] * 36},
        {"sliding_window": 4096, "max_window_layers": 28},
        {"rope_scaling": {"rope_type": "default"}},
    ],
)
def test_keys_of_a_window_that_is_off_change_nothing(changes):
    assert read_config(PUBLISHED | changes, "Qwen3-8B") == PRESETS["Qwen3-8B"]


def test_absent_keys_have_the_defaults_of_the_published_class():
    absent = ("head_dim", "num_key_value_heads", "use_sliding_window", "sliding_window")
    values = {key: value for key, value in PUBLISHED.items() if key not in absent}
    found, published = read_config(values | {"sliding_window": 4096}, "tiny"), Qwen3Config()
    assert found.head_dim == published.head_dim
    assert found.num_kv_heads == published.num_key_value_heads


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention"] * 35 + ["sliding_attention"]),
        ("layer_types", ["full_attention"] * 35),
        ("hidden_act", "gelu"),
        ("num_experts", 128),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 4.0}),
        ("scale_emb", 12.0),
    ],
)
def test_keys_that_ask_for_other_maths_are_refused_by_name(key, value):
    name = "rope_type" if key == "rope_scaling" else key
    with pytest.raises(ConfigError, match=name):
        read_config(PUBLISHED | {key: value}, "Qwen3-8B")
