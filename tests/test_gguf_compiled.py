"""A GGUF file gives the logits of the same weights in safetensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_json, write_tensors, write_tokenizer
from real_model import NAMES
from test_gguf import HIDDEN, LAYERS, SCALED, WIDE, factors, write_gguf

from minicpm_mlc import Engine
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.checkpoint.gguf import open_gguf
from minicpm_mlc.compile.model.registry import read_config_folder

gguf = pytest.importorskip("gguf", reason="writes and reads the files: pip install gguf")

HEADS = (4, 2, 32)  # of queries, of keys, their size
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS[0],
    "num_key_value_heads": HEADS[1],
    "head_dim": HEADS[2],
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {
    "rope_type": "longrope",
    "short_factor": factors(HEADS[2]).tolist(),
    "long_factor": factors(HEADS[2]).tolist(),
    "original_max_position_embeddings": 256,
}
# by architecture: the keys that the file has besides, and the config.json of the same model
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "minicpm": (
        {f"minicpm.{key}": np.float32(value) for key, value in SCALED.items()}
        | {"minicpm.rope.scaling.type": "longrope"},
        {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "scale_emb": 12}
        | {"scale_depth": 1.4, "dim_model_base": 32, "rope_scaling": ROPE},
    ),
    "qwen3": (
        {"qwen3.rope.freq_base": np.float32(1e6), "tokenizer.ggml.pre": "qwen2"},
        {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_theta": 1e6},
    ),
}


def published(path: Path, arch: str) -> dict[str, np.ndarray]:
    """The file's tensors, as the gguf package reads them, by their published names."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        top, _, rest = tensor.name.partition(".")
        if top != "blk":
            found |= {f"{TOP[top]}.weight": numbers} if top in TOP else {}
            continue
        layer, kind, _ = rest.split(".")
        if arch == "minicpm" and kind in ("attn_q", "attn_k"):  # pairs of rows lie side by side
            pairs = numbers.reshape(-1, HEADS[2] // 2, 2, HIDDEN)
            numbers = pairs.swapaxes(1, 2).reshape(numbers.shape)
        found[f"model.layers.{layer}.{(NAMES | NORMS)[kind]}.weight"] = numbers
    return found


@pytest.fixture(params=MODELS)
def sources(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A GGUF file, and a folder of safetensors with the same model."""
    arch = request.param
    keys, config = MODELS[arch]
    sizes = {f"{arch}.attention.key_length": HEADS[2], f"{arch}.attention.value_length": HEADS[2]}
    path = write_gguf(tmp_path / "m.gguf", arch, "F16", heads=HEADS, **sizes, **keys)
    tensors, folder = published(path, arch), tmp_path / "m"
    vocab = len(tensors["model.embed_tokens.weight"])
    folder.mkdir()
    write_tensors(folder, tensors, "f32")
    write_json(folder / "config.json", COMMON | config | {"vocab_size": vocab})
    write_tokenizer(folder, vocab)
    return path, folder


def test_its_config_and_weights_are_those_of_the_safetensors(sources):
    path, folder = sources
    opened, config = open_gguf(path), read_config_folder(folder)
    special = {"bos_token_id": 1, "eos_token_ids": (2,)}  # each has a tokenizer of its own
    assert replace(opened.config, **special) == config
    checkpoint = open_checkpoint(folder, config)
    assert opened.weights.names() == checkpoint.names()
    for name in checkpoint.names():
        assert np.array_equal(opened.weights.rows(name), checkpoint.rows(name)), name


@pytest.mark.campaign  # the same config and weights make the same library
def test_its_logits_are_those_of_the_safetensors(sources, tmp_path):
    ids = np.random.default_rng(0).integers(3, 200, 70).tolist()
    logits = []
    for source in sources:
        compile_model(source, tmp_path / f"{source.name}-bundle", scheme="f32")
        with Engine(tmp_path / f"{source.name}-bundle") as engine:
            logits.append(engine.logits(ids))
    assert logits[0].std() > 1e-3
    assert np.array_equal(*logits)
