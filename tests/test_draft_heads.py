"""Which EAGLE heads are taken: published layouts, and by name what does not fit the base model."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_eagle
import pytest
from checkpoints import tiny_config, write_checkpoint, write_json
from draft_heads import EAGLE2, EAGLE3, write_draft
from safetensors.numpy import load_file, save_file

from minicpm_mlc.base.errors import CheckpointError, CompileError, MiniCPMError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.draft import open_draft
from minicpm_mlc.compile.model.registry import (
    draft_config_like,
    published_tensors,
    read_draft_config,
    with_context,
)

BASE = tiny_config("MiniCPM4.1-8B")
LAYERS = (0, 1, 2)


@pytest.fixture
def eagle3(tmp_path) -> Path:
    write_draft(tmp_path / "head", BASE, EAGLE3, vocab=100, feature_layers=LAYERS)
    return tmp_path / "head"


@pytest.fixture
def eagle2(tmp_path) -> Path:
    write_draft(tmp_path / "head2", BASE, EAGLE2)
    return tmp_path / "head2"


def change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    write_json(
        folder / "config.json", {key: value for key, value in config.items() if value is not ...}
    )


def change_tensors(folder: Path, **changes: Any) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    save_file(
        {name: value for name, value in tensors.items() if value is not None},
        folder / "model.safetensors",
    )


def test_the_published_eagle3_config_is_read():
    """As printed with MiniCPM4.1-8B-Eagle3, whose names of layers are the default ones."""
    base = PRESETS["MiniCPM4.1-8B"]
    factors = list(base.rope_factors)
    rope = {"factor": 1.0, "long_factor": factors, "short_factor": factors, "rope_type": "longrope"}
    published = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "bos_token_id": 1,
        "draft_vocab_size": 32000,
        "eos_token_id": [2, 73440],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 16384,
        "max_position_embeddings": 65536,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_scaling": rope | {"original_max_position_embeddings": 65536},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.56.0",
        "use_cache": True,
        "vocab_size": 73448,
    }
    config = read_draft_config(published, EAGLE3, False, base, "config.json")
    assert (config.vocab_size, config.feature_layers, config.residual_scale) == (
        32000,
        (2, 16, 29),
        1.0,
    )
    assert published_tensors(config)["fc.weight"] == (4096, 12288)
    assert published_tensors(config)["midlayer.self_attn.k_proj.weight"] == (256, 8192)
    for same in (published | {"rope_scaling": None}, published):
        assert (
            read_draft_config(same, EAGLE3, False, with_context(base, 131072), "config.json")
            == config
        )


def test_d2t_holds_offsets(eagle3):
    offsets = load_file(eagle3 / "model.safetensors")["d2t"]
    assert open_draft(eagle3, BASE).token_ids.tolist() == [
        i + int(offset) for i, offset in enumerate(offsets)
    ]


def test_the_layers_outputs_that_eagle_config_names_enter_the_next(eagle3):
    assert open_draft(eagle3, BASE).config.feature_layers == LAYERS
    change(eagle3, eagle_config=..., eagle_aux_hidden_state_layer_ids=[1, 1, 2])
    assert open_draft(eagle3, BASE).config.feature_layers == (1, 1, 2)


def test_eagle2_shares_the_base_models_head_or_takes_rows_of_it(eagle2, tmp_path):
    assert not open_draft(eagle2, BASE).config.own_head
    write_json(tmp_path / "freq.json", [9, 4])
    cut = open_draft(eagle2, BASE, tmp_path / "freq.json")
    assert (cut.config.own_head, cut.config.vocab_size, cut.config.logit_scale) == (
        True,
        2,
        BASE.logit_scale,
    )


def test_a_head_that_torch_saved_is_the_same(eagle2):
    torch = pytest.importorskip("torch")
    tensors = load_file(eagle2 / "model.safetensors")
    (eagle2 / "model.safetensors").unlink()
    torch.save(
        {name: torch.from_numpy(value).bfloat16() for name, value in tensors.items()},
        eagle2 / "pytorch_model.bin",
    )
    head = open_draft(eagle2, BASE)
    for name, value in tensors.items():
        np.testing.assert_allclose(head.weights.rows(name), value, rtol=1e-2, atol=1e-6)
    with zipfile.ZipFile(eagle2 / "pytorch_model.bin", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"fc.weight": eval}, protocol=2))
    with pytest.raises(CheckpointError, match=r"holds \S+eval, not just numbers"):
        open_draft(eagle2, BASE)


BAD_CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("hidden_size", {"hidden_size": 512}, "hidden_size is 512, expected 256"),
    ("vocabulary", {"vocab_size": 300}, "vocab_size is 300, expected 323"),
    ("draft vocabulary", {"draft_vocab_size": 400}, "draft_vocab_size is 400"),
    ("head_dim", {"head_dim": 64}, "head_dim is 64, expected 128"),
    ("layers", {"num_hidden_layers": 2}, "num_hidden_layers is not 1"),
    ("rope", {"rope_theta": 5e5}, "rope_scaling is not"),
    (
        "layer ids",
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}},
        "eagle_aux_hidden_state_layer_ids",
    ),
    (
        "two layer ids",
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1]}},
        "eagle_aux_hidden_state_layer_ids",
    ),
    ("features", {"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state"),
    ("other maths", {"attention_bias": True}, "attention_bias"),
    ("scaling", {"scale_depth": 1.4}, "scale_depth"),
]


@pytest.mark.parametrize(
    "changes, message", [row[1:] for row in BAD_CONFIGS], ids=[row[0] for row in BAD_CONFIGS]
)
def test_a_head_for_another_model_is_refused_by_the_key(eagle3, changes, message):
    change(eagle3, **changes)
    with pytest.raises(MiniCPMError, match=message):
        open_draft(eagle3, BASE)


@pytest.mark.parametrize("key", ["scale_emb", "scale_depth", "dim_model_base"])
def test_eagle2_must_have_the_bases_scalings(eagle2, key):
    change(eagle2, **{key: 3})
    with pytest.raises(MiniCPMError, match=f"{key} is 3, expected"):
        open_draft(eagle2, BASE)
    change(eagle2, **{key: ...})
    with pytest.raises(MiniCPMError, match=f"{key} is missing"):
        open_draft(eagle2, BASE)


BAD_TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"fc.weight": None}, "fc.weight is missing"),
    (
        {"fc.weight": np.zeros((256, 512), np.float32)},
        r"fc.weight has shape \[256, 512\], expected \[256, 768\]",
    ),
    (
        {"midlayer.self_attn.q_norm.weight": np.ones(128, np.float32)},
        "q_norm.weight is not part of the model",
    ),
    ({"midlayer.hidden_norm.weight": None}, "no EAGLE head"),
    ({"d2t": None}, "no tensor d2t"),
    ({"d2t": np.zeros(99, np.int64)}, "d2t is I64"),
    ({"d2t": np.full(100, 224)}, "names a token twice, or one outside"),
    ({"d2t": -np.arange(100)}, "names a token twice, or one outside"),
]


@pytest.mark.parametrize("changes, message", BAD_TENSORS)
def test_a_head_with_other_tensors_is_refused_by_their_name(eagle3, changes, message):
    change_tensors(eagle3, **changes)
    with pytest.raises(MiniCPMError, match=message):
        open_draft(eagle3, BASE)


def test_other_mistakes_are_refused(eagle3, tmp_path):
    write_json(tmp_path / "freq.json", [1, 2])
    with pytest.raises(CompileError, match="draft vocabulary of its own, of 100"):
        open_draft(eagle3, BASE, tmp_path / "freq.json")
    for source, message in [
        ("random-eagle3:0", "up to 323"),
        ("random-eagle2:999", "up to 323"),
        ("nowhere", "not a folder"),
    ]:
        with pytest.raises(MiniCPMError, match=message):
            open_draft(source, BASE)
    with pytest.raises(MiniCPMError, match=r"in a folder inside; give .*head"):
        open_draft(tmp_path, BASE)
    (eagle3 / "config.json").unlink()
    with pytest.raises(MiniCPMError, match=r"no config\.json"):
        open_draft(eagle3, BASE)


def test_a_random_heads_size_and_a_list_are_not_both_taken(tmp_path):
    write_json(tmp_path / "freq.json", [1, 2])
    assert open_draft("random-eagle3", BASE, tmp_path / "freq.json").token_ids.tolist() == [1, 2]
    with pytest.raises(
        CompileError, match=r"random-eagle3:100 and --frspec .*freq\.json both choose its tokens"
    ):
        open_draft("random-eagle3:100", BASE, tmp_path / "freq.json")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_vllms_layout_is_refused_by_name(eagle2, prefix):
    tensors = load_file(eagle2 / "model.safetensors")
    renamed = {
        prefix + name.replace("layers.0.", "eagle_layers.0."): value
        for name, value in tensors.items()
    }
    save_file(renamed, eagle2 / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"vLLM's layout .*give a head in the layout of MiniCPM4-8B-Eagle-FRSpec",
    ):
        open_draft(eagle2, BASE)


def test_compile_refuses_before_it_writes(tmp_path):
    write_checkpoint(tmp_path / "model", BASE)
    write_draft(tmp_path / "head", replace(BASE, hidden_size=512), EAGLE2)
    refused: list[dict[str, Any]] = [
        {"draft": tmp_path / "head"},
        {"frspec": tmp_path / "f.json"},
        {"draft": "random-eagle3", "draft_scheme": "w3"},
    ]
    messages = ("hidden_size is 512", "give one with --draft", "--draft-quant w3")
    for options, message in zip(refused, messages, strict=True):
        with pytest.raises(MiniCPMError, match=message):
            compile_model(tmp_path / "model", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_random_head_is_forecast_for_a_published_shape():
    def forecast(**options: Any) -> Any:
        return compile_model(
            "MiniCPM4.1-8B", scheme="w4", random_weights=True, dry_run=True, **options
        )

    plain, small, large = (
        forecast(),
        forecast(draft="random-eagle3:8192"),
        forecast(draft="random-eagle3"),
    )
    assert 0.1e9 < small.weights - plain.weights < large.weights - plain.weights < 0.5e9
    assert (
        small.memory[-1]["bytes"] - plain.memory[-1]["bytes"] > 65536 * 1024
    )  # its cache, 1 KiB a token


def test_eagle3_does_not_depend_on_the_residual_scale_of_its_features():
    """The reference engine scales features and layer by constants that nearly agree; every reader
    is a norm.
    """
    base: ModelConfig = replace(BASE, num_layers=32)
    rng, n = np.random.default_rng(0), 12
    config = draft_config_like(base, EAGLE3)
    w = {
        name: rng.standard_normal(shape) / np.sqrt(shape[-1])
        for name, shape in published_tensors(config).items()
    }
    w |= {
        name: np.ones(shape) for name, shape in published_tensors(config).items() if len(shape) == 1
    }
    features, embedded = (
        rng.standard_normal((n, config.feature_width)),
        rng.standard_normal((n, 256)),
    )

    def logits(feature_scale: float, layer_scale: float) -> np.ndarray:
        scaled = replace(config, residual_scale=layer_scale)
        entered = numpy_eagle.entering(scaled, w, features * feature_scale)
        sees = [list(range(row + 1)) for row in range(n)]
        x = numpy_eagle.layer(scaled, base, w, embedded, entered, np.arange(n), sees)
        return numpy_eagle.logits(scaled, w, w["lm_head.weight"], x)

    ours, theirs = logits(1, 1), logits(1.4 / np.sqrt(32), 1.4 / np.sqrt(33))
    assert np.abs(ours - theirs).max() <= 0.02 * np.abs(ours).max()


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 32])
def test_a_random_head_reads_layers_that_its_model_has(layers):
    found = open_draft("random-eagle3", replace(BASE, num_layers=layers)).config.feature_layers
    assert len(found) == 3 and all(0 <= layer <= layers for layer in found)
