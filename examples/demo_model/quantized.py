"""Weights rounded as `compile --quant w4` will round them, for training: gradients pass the
rounding unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP = 32
# Where a group's largest weight may land, before the scale is fitted to them all.
EXTREMES = (-8.0, -8.375, -7.625, -8.75, -7.25, -9.125, -6.875, -9.5, -6.5)


@torch.no_grad()
def w4(weight: Tensor) -> Tensor:
    """The float32 weights [n, k] that the scheme w4 stands for, as
    minicpm_mlc/ops/formats/weights/schemes/w4.py defines it.
    """
    groups = weight.unflatten(-1, (-1, GROUP))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best, explained = torch.zeros_like(extreme), torch.full_like(extreme, -torch.inf)
    for target in EXTREMES:
        steps = _steps(groups, extreme / target)
        along, size = (groups * steps).sum(-1, keepdim=True), steps.square().sum(-1, keepdim=True)
        scale = (along / size).nan_to_num().half().float()
        gain = scale * (2 * along - scale * size)
        best, explained = torch.where(gain > explained, scale, best), torch.maximum(gain, explained)
    return (_steps(groups, best) * best).flatten(-2)


def _steps(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale).nan_to_num().round().clamp(-8, 7)


def rounded_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every matrix of the model as w4 stores it, by name, for `torch.func.functional_call`."""
    matrices = {name: value for name, value in model.named_parameters() if value.ndim == 2}
    return {name: value + (w4(value) - value).detach() for name, value in matrices.items()}
