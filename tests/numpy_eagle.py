"""EAGLE-2 and EAGLE-3 heads in float64 NumPy, row by row from their formulas: the oracle of the
compiled ones.
"""

from __future__ import annotations

import numpy as np
from draft_heads import EAGLE3
from numpy_model import rms_norm, rotate

from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig


def features(
    config: DraftConfig, base: ModelConfig, w: dict[str, np.ndarray], states: list[np.ndarray]
) -> np.ndarray:
    """What the head reads of the base's states (numpy_model.states), [n, F]; w: the base's
    weights.
    """
    if config.kind == EAGLE3:
        return np.concatenate([states[i] for i in config.feature_layers], -1)
    return rms_norm(states[-1], w["model.norm.weight"], base)


def entering(config: DraftConfig, w: dict[str, np.ndarray], read: np.ndarray) -> np.ndarray:
    """Features [n, F] -> the hidden states that stand for them, [n, H]."""
    return read @ w["fc.weight"].T if config.kind == EAGLE3 else read


def layer(
    config: DraftConfig,
    base: ModelConfig,
    w: dict[str, np.ndarray],
    embedded: np.ndarray,
    hidden: np.ndarray,
    positions: np.ndarray,
    sees: list[list[int]],
) -> np.ndarray:
    """Next hidden states [m, H] of the last m of n rows. embedded, hidden [n, H]; sees: the rows
    that each of these m attends to.
    """

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return (
            x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * w[f"{name}.weight"]
        )

    if config.kind == EAGLE3:
        name, x = "midlayer", hidden
        inputs = np.concatenate(
            [norm(embedded, "midlayer.input_layernorm"), norm(hidden, "midlayer.hidden_norm")], -1
        )
    else:
        name, pair = (
            "layers.0",
            np.concatenate([norm(embedded, "input_norm1"), norm(hidden, "input_norm2")], -1),
        )
        x = pair @ w["fc.weight"].T + w.get("fc.bias", 0)
        inputs = norm(x, "layers.0.input_layernorm")
    own = {key.removeprefix(f"{name}."): value for key, value in w.items() if key.startswith(name)}
    attended = attention(config, base, own, inputs, positions, sees)
    x = x[-len(sees) :] + config.residual_scale * attended
    m = norm(x, f"{name}.post_attention_layernorm")
    gate = m @ own["mlp.gate_proj.weight"].T
    gated = gate / (1 + np.exp(-gate)) * (m @ own["mlp.up_proj.weight"].T)
    return x + config.residual_scale * gated @ own["mlp.down_proj.weight"].T


def attention(config, base, w, x, positions, sees) -> np.ndarray:
    def project(name: str, heads: int) -> np.ndarray:
        return (x @ w[f"self_attn.{name}_proj.weight"].T).reshape(len(x), heads, config.head_dim)

    q = rotate(project("q", config.num_heads), positions, base)[-len(sees) :]
    keys = rotate(project("k", config.num_kv_heads), positions, base)
    values, group = project("v", config.num_kv_heads), config.num_heads // config.num_kv_heads
    out = np.zeros_like(q)
    for row, seen in enumerate(sees):
        for head in range(config.num_heads):
            scores = keys[seen, head // group] @ q[row, head] / np.sqrt(config.head_dim)
            p = np.exp(scores - scores.max())
            out[row, head] = p / p.sum() @ values[seen, head // group]
    return out.reshape(len(sees), -1) @ w["self_attn.o_proj.weight"].T


def logits(
    config: DraftConfig, w: dict[str, np.ndarray], head: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """Draft logits [n, draft vocab]. head: rows of the head that it uses."""
    if config.kind == EAGLE3:
        hidden = (
            hidden
            / np.sqrt((hidden**2).mean(-1, keepdims=True) + config.rms_norm_eps)
            * w["norm.weight"]
        )
    return hidden @ head.T * config.logit_scale
