"""transformers' Llama as the independent implementation: muP scalings folded into the weights,
float64.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minicpm_mlc.compile.config.model_config import ModelConfig


def folded_llama(config: ModelConfig, weights: dict[str, np.ndarray]) -> LlamaForCausalLM:
    """A Llama whose logits are the model's: the embedding is scaled by scale_emb, the outputs of
    attention and MLP by scale_depth / sqrt(layers), and the head by dim_model_base / hidden_size
    (so a tied head has to be untied)."""
    model = LlamaForCausalLM(llama_config(config)).double().eval()
    model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in fold(config, weights).items()}
    )
    return model


def fold(config: ModelConfig, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The Llama's state dict, float64."""
    folded = {name: array.astype(np.float64) for name, array in weights.items()}
    embedding = folded["model.embed_tokens.weight"]
    head = folded.get("lm_head.weight", embedding)
    if config.dim_model_base:
        head = head * (config.dim_model_base / config.hidden_size)
    depth = config.scale_depth / config.num_layers**0.5 if config.scale_depth else 1.0
    for name in folded:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            folded[name] = folded[name] * depth
    return folded | {
        "model.embed_tokens.weight": embedding * config.scale_emb,
        "lm_head.weight": head,
    }


def llama_config(config: ModelConfig) -> LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if any(factor != 1.0 for factor in config.rope_factors):
        factors = list(config.rope_factors)
        rope |= {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "factor": 1.0,
        }
        rope |= {"original_max_position_embeddings": config.max_position_embeddings}
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=rope,
        tie_word_embeddings=False,
    )


@torch.no_grad()
def llama_logits(model: LlamaForCausalLM, ids: list[int]) -> np.ndarray:
    """float64 [n, vocab]."""
    return model(torch.tensor([ids])).logits[0].numpy()
