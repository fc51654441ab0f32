"""config.json of a checkpoint: what is read of it, and the tensors that follow."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import config_json, tiny_config

from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.limits import choose_context, choose_prefill_chunk, choose_sparse
from minicpm_mlc.compile.model.registry import published_tensors, read_config_folder


def seeds() -> list[bytes]:
    sparse = tiny_config("MiniCPM4.1-8B", sparse=SparseConfig())
    llama = tiny_config("MiniCPM5-1B")
    made = [config_json(sparse), config_json(sparse, "native"), config_json(llama)]
    qwen = config_json(llama) | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    return [json.dumps(config).encode() for config in [*made, qwen]]


def run(data: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(data)
    config = read_config_folder(folder)
    longest = choose_context(config, None)
    choose_sparse(config, "auto", longest)
    choose_prefill_chunk(config, longest, None)
    assert ModelConfig.from_manifest(config.to_dict()) == config
    assert published_tensors(config) and config.inv_freq.size == config.head_dim // 2
