"""The whole model in float64 NumPy, with InfLLM-v2's selection written out loop by loop: the sparse
path's oracle.
"""

from __future__ import annotations

import numpy as np

from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig


def forward(
    config: ModelConfig, weights: dict[str, np.ndarray], ids: list[int], sparse_rows: list[bool]
) -> np.ndarray:
    """Logits float64 [n, vocab]; row r attends sparsely where sparse_rows[r]."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    x = states(config, w, ids, sparse_rows)[-1]
    return rms_norm(x, w["model.norm.weight"], config) * config.logit_scale @ head.T


def states(
    config: ModelConfig, w: dict[str, np.ndarray], ids: list[int], sparse_rows: list[bool]
) -> list[np.ndarray]:
    """The residual stream float64 [n, hidden] before each layer and after the last."""
    x = w["model.embed_tokens.weight"][ids] * config.scale_emb
    positions, found = np.arange(len(ids)), []
    for i in range(config.num_layers):
        found.append(x)
        layer = {
            name.split(f"layers.{i}.")[1]: v for name, v in w.items() if f"layers.{i}." in name
        }
        a = rms_norm(x, layer["input_layernorm.weight"], config)
        x = x + config.residual_scale * attention(config, layer, a, positions, sparse_rows)
        m = rms_norm(x, layer["post_attention_layernorm.weight"], config)
        gate = m @ layer["mlp.gate_proj.weight"].T
        up = m @ layer["mlp.up_proj.weight"].T
        x = (
            x
            + config.residual_scale
            * (gate / (1 + np.exp(-gate)) * up)
            @ layer["mlp.down_proj.weight"].T
        )
    return [*found, x]


def rms_norm(x: np.ndarray, weight: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * weight


def rotate(x: np.ndarray, positions: np.ndarray, config: ModelConfig) -> np.ndarray:
    angles = positions[:, None] * config.inv_freq.astype(np.float64)
    cos, sin = (f(angles)[:, None] * config.rope_attention_scale for f in (np.cos, np.sin))
    first, second = np.split(x, 2, -1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def attention(config, layer, x, positions, sparse_rows) -> np.ndarray:
    n, d, group = len(x), config.head_dim, config.num_heads // config.num_kv_heads

    def project(name: str, heads: int) -> np.ndarray:
        return (x @ layer[f"self_attn.{name}_proj.weight"].T).reshape(n, heads, d)

    q = rotate(project("q", config.num_heads), positions, config)
    keys = rotate(project("k", config.num_kv_heads), positions, config)
    values = project("v", config.num_kv_heads)
    out = np.zeros_like(q)
    means = [windows(keys[:, kv]) for kv in range(config.num_kv_heads)]
    for r in range(n):
        for kv in range(config.num_kv_heads):
            heads = slice(kv * group, (kv + 1) * group)
            seen = np.arange(r + 1)
            if sparse_rows[r]:
                read = select(q[r, heads], means[kv], r, config.sparse)
                seen = seen[np.isin(seen // 64, read)]
            scores = q[r, heads] @ keys[seen, kv].T / np.sqrt(d)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[r, heads] = p / p.sum(-1, keepdims=True) @ values[seen, kv]
    return out.reshape(n, -1) @ layer["self_attn.o_proj.weight"].T


Windows = tuple[list[np.ndarray], list[np.ndarray]]


def windows(keys: np.ndarray) -> Windows:
    """The mean keys of the fine windows, 32 tokens every 16, and of the coarse ones, 128 every 64.
    keys [n, d].
    """
    fine = [keys[16 * j : 16 * j + 32].mean(0) for j in range(len(keys) // 16 - 1)]
    coarse = [keys[64 * j : 64 * j + 128].mean(0) for j in range(len(keys) // 64 - 1)]
    return fine, coarse


def select(q: np.ndarray, means: Windows, position: int, sparse: SparseConfig) -> list[int]:
    """The blocks that one row reads, of whose windows it sees the finished ones. q [group, d]."""
    scale, current = np.sqrt(q.shape[1]), position // 64
    local = sparse.window_size // sparse.block_size
    fine, coarse = (
        found[: max(0, (position + 1) // step - 1)]
        for found, step in zip(means, (16, 64), strict=True)
    )
    blocks = np.zeros(current + 1)
    if coarse:
        normaliser = np.log(np.exp(q @ np.array(coarse).T / scale).sum(-1))
        window = np.exp(q @ np.array(fine).T / scale - normaliser[:, None]).sum(0)
        for j in range(current + 1):
            blocks[j] = window[max(0, 4 * j - 1) : 4 * j + 4].max(initial=0.0)
    forced = [j < sparse.init_blocks or j >= current - local for j in range(current + 1)]
    blocks[forced] = np.inf
    return sorted(np.argsort(-blocks, kind="stable")[: sparse.topk + local].tolist())
