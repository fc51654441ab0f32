"""The EAGLE-3 draft head of MiniCPM4.1 in torch, scaled to the demo: one layer over fused hidden
states of the base.

Row i of a sequence pairs the base's features of token i with the embedding of token i + 1, and
predicts token i + 2. At the next depth a row reads, in place of the features, the head's own output
of the row before it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from model import MLP, RMSNorm, rotary_tables, rotate
from safetensors.torch import load_file
from torch import Tensor, nn


class Attention(nn.Module):
    """Grouped-query attention whose input is the embedding beside the feature."""

    def __init__(self, config: dict):
        super().__init__()
        size, self.heads, self.kv_heads = (
            config["hidden_size"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
        )
        self.dim = size // self.heads
        self.q_proj = nn.Linear(2 * size, size, bias=False)
        self.k_proj = nn.Linear(2 * size, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(2 * size, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """x [batch, n, 2 hidden] of the depth len(past); `past` holds each depth's keys and values
        and gets this one's.

        Row i of depth d sees the first depth's rows up to i - d, then its own ancestors: one row of
        every later depth.
        """
        batch, length, _ = x.shape
        q, k, v = (
            proj(x).view(batch, length, heads, self.dim).transpose(1, 2)
            for proj, heads in (
                (self.q_proj, self.heads),
                (self.k_proj, self.kv_heads),
                (self.v_proj, self.kv_heads),
            )
        )
        share = self.heads // self.kv_heads
        q, k = rotate(q, cos, sin), rotate(k, cos, sin).repeat_interleave(share, 1)
        past.append((k, v.repeat_interleave(share, 1)))
        depth, rows = len(past) - 1, torch.arange(length)
        scores = (q @ past[0][0].transpose(-1, -2)).masked_fill(
            rows > rows[:, None] - depth, -torch.inf
        )
        ancestors = [tuple(shift_rows(t, depth - d) for t in past[d]) for d in range(1, depth + 1)]
        near = [(q * key).sum(-1, keepdim=True) for key, _ in ancestors]
        weights = (
            (torch.cat([scores, *near], -1).float() / math.sqrt(self.dim)).softmax(-1).to(x.dtype)
        )
        out = weights[..., :length] @ past[0][1]
        for d, (_, value) in enumerate(ancestors):
            out = out + weights[..., length + d, None] * value
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def shift_rows(x: Tensor, by: int) -> Tensor:
    """Row i becomes row i + by along the axis before the last; zeros come in."""
    return F.pad(x, (0, 0, by, 0))[..., : x.shape[-2], :]


class MidLayer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        size, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm, self.hidden_norm = RMSNorm(size, eps), RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.self_attn, self.mlp = Attention(config), MLP(config)

    def forward(self, embedded: Tensor, x: Tensor, cos: Tensor, sin: Tensor, past: list) -> Tensor:
        both = torch.cat((self.input_layernorm(embedded), self.hidden_norm(x)), -1)
        x = x + self.self_attn(both, cos, sin, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Eagle3(nn.Module):
    """`d2t[i]` + i is the token that row i of the head's own vocabulary stands for; `t2d` marks
    those tokens.
    """

    d2t: Tensor
    t2d: Tensor

    def __init__(self, config: dict, tokens: Tensor):
        """tokens: the draft vocabulary, ascending ids, int64 [draft_vocab_size]."""
        super().__init__()
        self.config = config
        size, drafts = config["hidden_size"], config["draft_vocab_size"]
        self.fc = nn.Linear(3 * size, size, bias=False)
        self.midlayer = MidLayer(config)
        self.norm = RMSNorm(size, config["rms_norm_eps"])
        self.lm_head = nn.Linear(size, drafts, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        self.register_buffer("d2t", tokens - torch.arange(drafts))
        self.register_buffer(
            "t2d", torch.zeros(config["vocab_size"], dtype=torch.bool).scatter(0, tokens, True)
        )
        tables = rotary_tables(config, torch.arange(config["max_position_embeddings"]))
        self.cos, self.sin = (nn.Buffer(table, persistent=False) for table in tables)

    def forward(self, features: Tensor, embedded: Tensor, depths: int) -> list[Tensor]:
        """Draft logits [batch, n, draft vocabulary] of each depth.

        features [batch, n, 3 hidden] of the tokens, embedded [batch, n, hidden] of the tokens after
        them. Row i of depth d starts from row i - d's features; it predicts token i + 2 as the d-th
        guess in a row, the ones before right. Rows below d have no such start and mean nothing.
        """
        length, past, out = features.shape[1], [], []
        x = self.fc(features)
        for _ in range(depths):
            x = self.midlayer(embedded, x, self.cos[:length], self.sin[:length], past)
            out.append(self.lm_head(self.norm(x)))
            x = shift_rows(x, 1)
        return out


def load(folder: Path) -> Eagle3:
    """The exported head, computed in float32."""
    weights = load_file(folder / "model.safetensors")
    offsets = weights["d2t"]
    head = Eagle3(
        json.loads((folder / "config.json").read_text()), offsets + torch.arange(len(offsets))
    )
    head.load_state_dict(
        {name: t.float() if t.is_floating_point() else t for name, t in weights.items()}
    )
    return head.eval()
