"""Small random EAGLE heads, written as the published ones are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import _unlike_ones, config_json, write_json
from safetensors.numpy import save_file

from minicpm_mlc.compile.checkpoint import RandomCheckpoint
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.registry import draft_config_like

EAGLE2, EAGLE3 = "eagle2", "eagle3"


def draft_config_json(config: DraftConfig, base: ModelConfig) -> dict[str, Any]:
    """config.json as MiniCPM4.1-8B-Eagle3 has it, or as a MiniCPM4 head would."""
    values = config_json(base) | {"num_hidden_layers": 1, "head_dim": config.head_dim}
    values |= {
        "intermediate_size": config.intermediate_size,
        "num_key_value_heads": config.num_kv_heads,
    }
    if config.kind == EAGLE3:
        for key in ("scale_emb", "scale_depth", "dim_model_base", "sparse_config", "auto_map"):
            values.pop(key, None)
        values |= {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "draft_vocab_size": config.vocab_size,
        }
        values["eagle_config"] = {
            "eagle_aux_hidden_state_layer_ids": [i - 1 for i in config.feature_layers]
        }
    return values


def write_draft(
    folder: Path, base: ModelConfig, kind: str, *, vocab: int | None = None, **changes: Any
) -> dict[str, np.ndarray]:
    """Writes a head of `vocab` tokens; returns its weights. `changes`: of DraftConfig, such as
    feature_layers or bias.
    """
    config = replace(draft_config_like(base, kind), vocab_size=vocab or base.vocab_size, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    source = RandomCheckpoint(config, seed=3)
    weights = {name: _unlike_ones(name, source.rows(name)) for name in source.names()}
    stored = dict(weights)
    if kind == EAGLE3:
        ids = np.sort(np.random.default_rng(4).permutation(base.vocab_size)[: config.vocab_size])
        stored["d2t"] = ids - np.arange(config.vocab_size)
        stored["t2d"] = np.isin(np.arange(base.vocab_size), ids)
    save_file(stored, folder / "model.safetensors")
    write_json(folder / "config.json", draft_config_json(config, base))
    return weights
