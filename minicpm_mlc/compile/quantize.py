"""Weight schemes: float casts, and 8-bit and 4-bit symmetric groups with f16 scales. ops/packing.py lays them out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.errors import CheckpointError, CompileError


@dataclass(frozen=True)
class Scheme:
    """How a matrix is stored: `kind` is "float" or "int", `group` the columns that share an f16 scale (0: none)."""

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

# The largest weight of a group lands on -8 or, when that fits the others better, is clipped or rounded by half a step:
# 7 % less squared error on normal weights than -8 alone, for three passes.
W4_EXTREMES = (-8.0, -8.5, -7.5)


def quantize(weights: np.ndarray, scheme: Scheme, name: str = "weights") -> tuple[np.ndarray, np.ndarray | None]:
    """f32 [n, k] -> (values [n, k], scale f16 [n, k/group] or None).

    Values: f32 and f16 as they are, bf16 as its uint16 bits, w8 as int8 = round(w/scale), w4 as uint8 =
    round(w/scale) + 8 (GPTQ's convention, w = (value - 8) * scale). Raises CheckpointError naming the tensor whose
    weights are not finite or too large for the scheme, CompileError where k isn't a multiple of the group.
    """
    _require_finite(weights, name)
    if scheme.kind == "float":
        return _cast(weights, scheme, name), None
    groups = _split_groups(weights, scheme, name)
    with np.errstate(over="ignore", invalid="ignore"):
        values, scale = (_quantize_w4 if scheme.bits == 4 else _quantize_w8)(groups)
    if not np.isfinite(scale).all():
        raise _too_large(weights, scheme, name)
    return values.reshape(weights.shape), scale


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
    if not np.isfinite(weights.sum(dtype=np.float64)):  # one cheap pass: a NaN or infinity always reaches the sum
        raise CheckpointError(
            f"tensor {name} holds NaN or infinite weights: the checkpoint is damaged, download it again"
        )


def _too_large(weights: np.ndarray, scheme: Scheme, name: str) -> CheckpointError:
    largest = float(np.abs(weights).max())
    return CheckpointError(
        f"tensor {name} holds a weight of {largest:g}, too large for scheme {scheme.name}: use --quant f32"
    )


def _split_groups(weights: np.ndarray, scheme: Scheme, name: str) -> np.ndarray:
    rows, columns = weights.shape
    if columns % scheme.group:
        raise CompileError(
            f"tensor {name} has {columns} columns, not a multiple of scheme {scheme.name}'s group of {scheme.group}: "
            "use --quant f16"
        )
    return weights.reshape(rows, columns // scheme.group, scheme.group)


def _cast(weights: np.ndarray, scheme: Scheme, name: str) -> np.ndarray:
    if scheme.name == "f32":
        return weights
    if scheme.name == "f16":
        with np.errstate(over="ignore", invalid="ignore"):
            values = weights.astype(np.float16)
        overflow = np.isinf(values)
    else:
        bits = np.ascontiguousarray(weights).view(np.uint32)
        values = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # round to nearest, ties to even
        overflow = values & 0x7FFF == 0x7F80
    if overflow.any():
        raise _too_large(weights, scheme, name)
    return values


def _quantize_w8(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.maximum(groups.max(-1), -groups.min(-1))
    scale = (largest / 127).astype(np.float16)
    return _steps(groups, scale, -127, 127).astype(np.int8), scale


def _quantize_w4(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high, low = groups.max(-1), groups.min(-1)
    extreme = np.where(high > -low, high, low)
    scales = np.stack([(extreme / target).astype(np.float16) for target in W4_EXTREMES])
    best = np.argmin([_squared_error(groups, scale) for scale in scales], axis=0)
    scale = np.take_along_axis(scales, best[None], axis=0)[0]
    steps = _steps(groups, scale, -8, 7)
    steps += 8
    return steps.astype(np.uint8), scale


def _steps(groups: np.ndarray, scale: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """round(groups / scale) as f32 within the range; zeros where f16 rounded the scale to zero."""
    divisor = scale.astype(np.float32)
    steps = groups * np.divide(1, divisor, out=np.zeros_like(divisor), where=divisor != 0)[..., None]
    np.rint(steps, out=steps)
    return np.clip(steps, lowest, highest, out=steps)


def _squared_error(groups: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Squared error per group of 4-bit rounding."""
    difference = _steps(groups, scale, -8, 7)
    difference *= scale.astype(np.float32)[..., None]
    difference -= groups
    return np.einsum("ngk,ngk->ng", difference, difference)
