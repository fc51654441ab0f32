"""The MiniCPM4 decoder in torch, for training and for evaluation: muP scalings, LongRoPE, GQA,
SwiGLU.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from selection import block_mask, selection_loss
from torch import Tensor, nn

LONGROPE_FACTORS = [
    1.0004360675811768,
    1.0668443441390991,
    1.1631425619125366,
    1.3025742769241333,
    1.5040205717086792,
    1.7941505908966064,
    2.2101221084594727,
    2.802666664123535,
    3.6389970779418945,
    4.804192543029785,
    6.39855432510376,
    8.527148246765137,
    11.277542114257812,
    14.684998512268066,
    18.69317054748535,
    23.13019371032715,
    27.72362518310547,
    32.1606559753418,
    36.168827056884766,
    39.57627868652344,
    42.32667541503906,
    44.45526885986328,
    46.04962921142578,
    47.21482849121094,
    48.05115509033203,
    48.64370346069336,
    49.05967712402344,
    49.34980392456055,
    49.551246643066406,
    49.69068145751953,
    49.78697967529297,
    49.85338592529297,
]

CONFIG = {
    "architectures": ["MiniCPMForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dim_model_base": 64,
    "eos_token_id": [2, 1528],
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.1,
    "intermediate_size": 512,
    "max_position_embeddings": 8192,
    "model_type": "minicpm",
    "mup_denominator": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "long_factor": LONGROPE_FACTORS,
        "original_max_position_embeddings": 8192,
        "rope_type": "longrope",
        "short_factor": LONGROPE_FACTORS,
    },
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "sparse_config": {
        "block_size": 64,
        "dense_len": 512,
        "init_blocks": 1,
        "kernel_size": 32,
        "kernel_stride": 16,
        "topk": 6,
        "use_nope": False,
        "window_size": 128,
    },
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1536,
}


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


def rotary_tables(config: dict, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [n, head_dim] of LongRoPE: the factors divide the frequencies."""
    dim = config["hidden_size"] // config["num_attention_heads"]
    factors = torch.tensor(config["rope_scaling"]["long_factor"], dtype=torch.float64)
    frequencies = 1 / (
        factors * config["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    )
    angles = torch.outer(positions.double(), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Gear:
    """How attention reads, for training: sparse, and the rows [batch, n] whose choice of blocks is
    taught, if any.

    Each layer appends its selection loss, the mass on free blocks and the part of it that was
    reached to `taught`.
    """

    def __init__(self, sparse: bool = False, rows: Tensor | None = None):
        self.sparse, self.rows = sparse, rows
        self.taught: list[tuple[Tensor, Tensor, Tensor]] = []


class Attention(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.sparse_config = config["sparse_config"]
        size, self.heads, self.kv_heads = (
            config["hidden_size"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
        )
        self.dim = size // self.heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(size, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor] | None, gear: Gear
    ) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            proj(x).view(batch, length, heads, self.dim).transpose(1, 2)
            for proj, heads in (
                (self.q_proj, self.heads),
                (self.k_proj, self.kv_heads),
                (self.v_proj, self.kv_heads),
            )
        )
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        causal = length > 1
        if past is not None:
            k, v = (
                torch.cat([past[0], k], 2) if past else k,
                torch.cat([past[1], v], 2) if past else v,
            )
            past[:] = [k, v]
        if gear.rows is not None:
            some = q.gather(2, gear.rows[:, None, :, None].expand(-1, self.heads, -1, self.dim))
            gear.taught.append(selection_loss(some, k, gear.rows, self.sparse_config))
        share = self.heads // self.kv_heads
        mask = block_mask(q, k, self.sparse_config) if gear.sparse else None
        if mask is not None and self.kv_heads > 1:  # one mask for all heads need not be repeated
            mask = mask.repeat_interleave(share, 1)
        k, v = (t.repeat_interleave(share, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and not gear.sparse
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        size, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.input_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.mlp = MLP(config)
        self.scale = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor] | None, gear: Gear
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past, gear) * self.scale
        return x + self.mlp(self.post_attention_layernorm(x)) * self.scale


class Decoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])


class MiniCPM(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config, self.model = config, Decoder(config)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        nn.init.normal_(self.model.embed_tokens.weight, std=config["initializer_range"])
        # The tables for every position, made once.
        tables = rotary_tables(config, torch.arange(config["max_position_embeddings"]))
        self.cos, self.sin = (nn.Buffer(table, persistent=False) for table in tables)

    def forward(
        self,
        ids: Tensor,
        start: int = 0,
        cache: list[list[Tensor]] | None = None,
        gear: Gear | None = None,
    ) -> Tensor:
        """Logits [batch, length, vocab] of ids [batch, length]; with a cache only the last row's.

        A sparse `gear` lets each row read only the blocks that InfLLM-v2 selects; it is for
        training, without a cache. A cache is one empty list per layer, filled in place. With a
        filled cache the length is 1.
        """
        cos, sin = self.cos[start : start + ids.shape[1]], self.sin[start : start + ids.shape[1]]
        x = self.model.embed_tokens(ids) * self.config["scale_emb"]
        for i, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, cache[i] if cache is not None else None, gear or Gear())
        x = self.model.norm(x if cache is None else x[:, -1:])
        return F.linear(
            x * (self.config["dim_model_base"] / self.config["hidden_size"]),
            self.model.embed_tokens.weight,
        )

    @torch.inference_mode()
    def greedy(self, ids: list[int], max_tokens: int) -> list[int]:
        """The tokens generated after ids, without the end token."""
        cache: list[list[Tensor]] = [[] for _ in self.model.layers]
        out: list[int] = []
        token = int(self(torch.tensor([ids]), 0, cache)[0, -1].argmax())
        while token not in self.config["eos_token_id"] and len(out) < max_tokens:
            out.append(token)
            token = int(
                self(torch.tensor([[token]]), len(ids) + len(out) - 1, cache)[0, -1].argmax()
            )
        return out


def load(folder: Path) -> MiniCPM:
    """The exported checkpoint, computed in float32."""
    model = MiniCPM(json.loads((folder / "config.json").read_text()))
    weights = {
        name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()
    }
    model.load_state_dict(weights)
    return model.eval()
