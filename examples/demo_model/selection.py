"""Which blocks a row reads under InfLLM-v2, and the loss that teaches the choice, which has no
gradient of its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDE, BLOCK = 16, 64  # tokens of a segment and of a block


def block_scores(q: Tensor, k: Tensor, rows: Tensor) -> Tensor:
    """Score of every block for every row, float32 [batch, kv heads, n, blocks]; differentiable.

    q [batch, heads, n, d], rotated, at the positions `rows` [batch or 1, n]; k [batch, kv heads,
    length, d], rotated. As in the engine: means of 16-token segments, normalised over the coarse
    windows, summed over the heads of a group, the best of the five windows that touch a block. Rows
    below 127 score nothing.
    """
    batch, kv_heads, length, dim = k.shape
    means = (
        k[:, :, : length // STRIDE * STRIDE].float().view(batch, kv_heads, -1, STRIDE, dim).mean(3)
    )
    groups = q.float().view(batch, kv_heads, -1, q.shape[2], dim)
    logits = groups @ means[:, :, None].transpose(-1, -2) / math.sqrt(dim)
    fine, coarse = (logits[..., :-1] + logits[..., 1:]) / 2, logits.unfold(-1, 8, 4).mean(-1)
    fine_ends, coarse_ends = (
        16 * torch.arange(fine.shape[-1]) + 32,
        64 * torch.arange(coarse.shape[-1]) + 128,
    )
    rows = rows[:, None, :, None]
    coarse = coarse.masked_fill(coarse_ends > rows[:, :, None] + 1, -torch.inf)
    scores = (fine - coarse.logsumexp(-1, keepdim=True)).exp().sum(2)
    scores = scores.masked_fill((fine_ends > rows + 1) | (rows < 127), 0.0)
    blocks = -(-length // BLOCK)
    padded = F.pad(scores, (1, 4 * blocks + 4 - scores.shape[-1])).flatten(0, 1)
    return F.max_pool1d(padded, 5, 4)[..., :blocks].view(batch, kv_heads, -1, blocks)


def free_blocks(rows: Tensor, blocks: int, sparse: dict) -> Tensor:
    """The blocks that a row reads only by score, bool [batch or 1, 1, n, blocks]: neither first,
    nor local, nor future.
    """
    number, local = torch.arange(blocks), sparse["window_size"] // BLOCK
    return (number >= sparse["init_blocks"]) & (number < rows[:, None, :, None] // BLOCK - local)


@torch.no_grad()
def block_mask(q: Tensor, k: Tensor, sparse: dict) -> Tensor:
    """Which keys each row reads, bool [batch, kv heads, length, length]."""
    length = k.shape[2]
    rows = torch.arange(length)
    scores = block_scores(q, k, rows[None])
    blocks, own = scores.shape[-1], rows[:, None] // BLOCK
    seen = torch.arange(blocks) <= own
    scores = scores.masked_fill(~free_blocks(rows[None], blocks, sparse), torch.inf).masked_fill(
        ~seen, -torch.inf
    )
    budget = min(sparse["topk"] + sparse["window_size"] // BLOCK, blocks)
    mask = (
        torch.zeros(scores.shape, dtype=torch.bool).scatter(-1, scores.topk(budget).indices, True)
        & seen
    )
    return mask.repeat_interleave(BLOCK, -1)[..., :length] & (rows <= rows[:, None])


@torch.no_grad()
def block_mass(q: Tensor, k: Tensor, rows: Tensor) -> Tensor:
    """Dense attention's mass per block, mean over the heads of a group, [batch, kv heads, n,
    blocks].
    """
    batch, kv_heads, length, dim = k.shape
    groups = q.view(batch, kv_heads, -1, q.shape[2], dim)
    logits = (groups @ k[:, :, None].transpose(-1, -2)).float() / math.sqrt(dim)
    logits.masked_fill_(torch.arange(length) > rows[:, None, None, :, None], -torch.inf)
    mass = F.pad(logits.softmax(-1).mean(2), (0, -length % BLOCK))
    return mass.unflatten(-1, (-1, BLOCK)).sum(-1)


def selection_loss(
    q: Tensor, k: Tensor, rows: Tensor, sparse: dict
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy between the dense attention's mass on the free blocks and the scores' share of
    each.

    Arguments as `block_scores`; rows [batch, n] that have free blocks. A row counts by the mass of
    its largest: one that looks only at near tokens, or everywhere a little, teaches nothing.
    Returns the loss, the mass on free blocks, and how much of it the budget would reach.
    """
    scores, mass = block_scores(q, k, rows), block_mass(q, k, rows)
    free = free_blocks(rows, scores.shape[-1], sparse)
    target = mass.masked_fill(~free, 0.0)
    shares = (
        scores.clamp_min(1e-20)
        .log()
        .masked_fill(~free, -torch.inf)
        .log_softmax(-1)
        .masked_fill(~free, 0.0)
    )
    chosen = (
        shares.masked_fill(~free, -torch.inf)
        .topk(sparse["topk"] - sparse["init_blocks"] - 1)
        .indices
    )
    count = target[..., 0].numel()
    reached = target.gather(-1, chosen).sum() / count
    weight = target.amax(-1, keepdim=True) / target.sum(-1, keepdim=True).clamp_min(1e-6)
    return -(weight * target * shares).sum() / count, target.sum() / count, reached
