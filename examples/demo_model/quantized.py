"""Weights rounded as `compile --quant w4` will round them, for training: gradients pass the rounding unchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP = 32
EXTREMES = (-8.0, -8.5, -7.5)  # where the largest weight of a group may land; the best of them is kept


@torch.no_grad()
def w4(weight: Tensor) -> Tensor:
    """The float32 weights [n, k] that the scheme w4 (minicpm_mlc/compile/quantize.py) stands for."""
    groups = weight.unflatten(-1, (-1, GROUP))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best, best_error = groups, torch.full_like(extreme, torch.inf)
    for target in EXTREMES:
        scale = (extreme / target).half().float()
        rounded = (groups / scale).nan_to_num().round().clamp(-8, 7) * scale
        error = (rounded - groups).square().sum(-1, keepdim=True)
        best = torch.where(error < best_error, rounded, best)
        best_error = torch.minimum(error, best_error)
    return best.flatten(-2)


def rounded_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every matrix of the model as w4 stores it, by name, for `torch.func.functional_call`."""
    matrices = {name: value for name, value in model.named_parameters() if value.ndim == 2}
    return {name: value + (w4(value) - value).detach() for name, value in matrices.items()}
