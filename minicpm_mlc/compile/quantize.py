"""Weight schemes: float casts, and 8-bit and 4-bit symmetric groups with f16 scales.
ops/formats/packing.py lays them out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.base.errors import CheckpointError, CompileError


@dataclass(frozen=True)
class Scheme:
    """How a matrix is stored: `kind` is "float" or "int", `group` the columns that share an f16
    scale (0: none).
    """

    name: str
    bits: int
    group: int
    kind: str
    dtype: str


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("f32", 32, 0, "float", "float32"),
        Scheme("f16", 16, 0, "float", "float16"),
        Scheme("bf16", 16, 0, "float", "bfloat16"),
        Scheme("w8", 8, 32, "int", "int8"),
        Scheme("w4", 4, 32, "int", "uint8"),
    )
}

# Steps that the largest weight of a group is tried at; the best assignment's least-squares scale is
# stored: 7 % less squared error on normal weights than -8 alone, within 0.3 % of the best that one
# scale per group can do.
W4_EXTREMES = (-8.0, -8.375, -7.625, -8.75, -7.25, -9.125, -6.875, -9.5, -6.5)


def quantize(
    weights: np.ndarray, scheme: Scheme, name: str = "weights"
) -> tuple[np.ndarray, np.ndarray | None]:
    """f32 [n, k] -> (values [n, k], scale f16 [n, k/group] or None).

    Values: f32 and f16 as they are, bf16 as its uint16 bits, w8 as int8 = round(w/scale), w4 as
        uint8 =
    round(w/scale) + 8 (GPTQ's convention, w = (value - 8) * scale). Raises CheckpointError naming
    the tensor whose weights are not finite or too large for the scheme, CompileError where k isn't
    a multiple of the group.
    """
    _require_finite(weights, name)
    if scheme.kind == "float":
        return _cast(weights, scheme, name), None
    groups = _split_groups(weights, scheme, name)
    with np.errstate(over="ignore", invalid="ignore"):
        values, scale = (_quantize_w4 if scheme.bits == 4 else _quantize_w8)(groups)
    if not np.isfinite(scale).all():
        raise _too_large(weights, scheme, name)
    return np.ascontiguousarray(values.T).reshape(weights.shape), scale.reshape(len(weights), -1)


def dequantize(values: np.ndarray, scale: np.ndarray | None, scheme: Scheme) -> np.ndarray:
    """The f32 [n, k] weights that `quantize`'s result stands for."""
    if scheme.name == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if scale is None:
        return values.astype(np.float32)
    zero = 8 if scheme.bits == 4 else 0
    groups = values.reshape(*scale.shape, scheme.group).astype(np.float32) - zero
    return (groups * scale.astype(np.float32)[..., None]).reshape(values.shape)


def _require_finite(weights: np.ndarray, name: str) -> None:
    if not np.isfinite(
        weights.sum(dtype=np.float64)
    ):  # one cheap pass: a NaN or infinity always reaches the sum
        raise CheckpointError(
            f"tensor {name} holds NaN or infinite weights: the checkpoint is damaged, download "
            "it again"
        )


def _too_large(weights: np.ndarray, scheme: Scheme, name: str) -> CheckpointError:
    largest = float(np.abs(weights).max())
    return CheckpointError(
        f"tensor {name} holds a weight of {largest:g}, too large for scheme {scheme.name}: use "
        "--quant f32"
    )


def _split_groups(weights: np.ndarray, scheme: Scheme, name: str) -> np.ndarray:
    """[group, groups]: NumPy is many times faster along the long axis than within a group."""
    columns = weights.shape[1]
    if columns % scheme.group:
        raise CompileError(
            f"tensor {name} has {columns} columns, not a multiple of scheme {scheme.name}'s "
            f"group of {scheme.group}: "
            "use --quant f16"
        )
    return np.ascontiguousarray(weights.reshape(-1, scheme.group).T)


def _cast(weights: np.ndarray, scheme: Scheme, name: str) -> np.ndarray:
    if scheme.name == "f32":
        return weights
    if scheme.name == "f16":
        with np.errstate(over="ignore", invalid="ignore"):
            values = weights.astype(np.float16)
        overflow = np.isinf(values)
    else:
        bits = np.ascontiguousarray(weights).view(np.uint32)
        values = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(
            np.uint16
        )  # round to nearest, ties to even
        overflow = values & 0x7FFF == 0x7F80
    if overflow.any():
        raise _too_large(weights, scheme, name)
    return values


def _quantize_w8(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.maximum(groups.max(0), -groups.min(0))
    scale = (largest / 127).astype(np.float16)
    return _steps(groups, scale, -127, 127).astype(np.int8), scale


def _quantize_w4(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = _least_squares_scale(groups)
    steps = _steps(groups, scale, -8, 7)
    steps += 8
    return steps.astype(np.uint8), scale


def _least_squares_scale(groups: np.ndarray) -> np.ndarray:
    """f16 [groups]: steps q of weights w ask for the scale s = w q / q q and leave the error w w -
    s (2 w q - s q q).
    """
    high, low = groups.max(0), groups.min(0)
    extreme = np.where(high > -low, high, low)
    best = (extreme / np.float32(W4_EXTREMES[0])).astype(np.float16)
    explained = np.full_like(extreme, -np.inf)
    for target in W4_EXTREMES:
        steps = _steps(groups, extreme / np.float32(target), -8, 7)
        along, size = (np.einsum("kg,kg->g", v, steps) for v in (groups, steps))
        scale = np.divide(along, size, out=np.zeros_like(along), where=size != 0).astype(np.float16)
        gain = scale * (2 * along - scale * size)
        better = gain > explained
        np.copyto(best, scale, where=better)
        np.copyto(explained, gain, where=better)
    return best


def _steps(groups: np.ndarray, scale: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """round(groups / scale) as f32 within the range; zeros where the scale is zero."""
    divisor = scale.astype(np.float32)
    steps = groups * np.divide(1, divisor, out=np.zeros_like(divisor), where=divisor != 0)
    np.rint(steps, out=steps)
    return np.clip(steps, lowest, highest, out=steps)
