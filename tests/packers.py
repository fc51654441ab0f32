"""Quantised checkpoints as other tools write them: integers packed by the rules of each form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import config_json, tiny_config, write_checkpoint, write_json

from minicpm_mlc.compile import CompileResult
from minicpm_mlc.compile.checkpoint.weights import ENDS, Weights
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.ops.formats.weights import SCHEMES

DTYPES = {"i4": "I32", "u4": "U32", "i8": "I64", "f2": "F16", "f4": "F32", "u2": "BF16"}
DTYPES |= {"i1": "I8", "u1": "F8_E4M3"}
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # the output at each place of a word

Tensors = dict[str, np.ndarray]
Packer = Callable[[np.ndarray], Tensors]  # a matrix -> its tensors by the ends of their names


def file_of(tensors: Tensors) -> bytes:
    """A safetensors file; uint16 is bf16's bits, uint8 an 8-bit float's."""
    header: dict[str, Any] = {}
    data = b""
    for name, value in tensors.items():
        raw = np.ascontiguousarray(value).tobytes()
        place = [len(data), len(data) + len(raw)]
        dtype = DTYPES[value.dtype.str[1:]]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def words_of(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers along the last axis as one little-endian stream of bits a row: int32 words."""
    stream = (values[..., None] >> np.arange(bits)) & 1
    stream = stream.reshape(*values.shape[:-1], -1)
    spare = -stream.shape[-1] % 32
    stream = np.concatenate([stream, np.zeros((*stream.shape[:-1], spare), int)], -1)
    return np.packbits(stream.astype(np.uint8), axis=-1, bitorder="little").view("<i4")


def rounded(w: np.ndarray, bits: int, group: int, symmetric: bool) -> tuple[np.ndarray, ...]:
    """Values [n, k], f16 scales [n, groups] and zero points [n, groups] of a matrix."""
    groups = w.reshape(len(w), -1, group)
    top = (1 << bits) - 1
    if symmetric:
        scale = np.abs(groups).max(-1) / ((top - 1) / 2)
        zero = np.full(scale.shape, (top + 1) // 2)
    else:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scale = (high - low) / top
        zero = np.rint(-low / scale).astype(int).clip(1, top)
    scale = scale.astype(np.float16)
    values = np.rint(groups / scale[..., None].astype(np.float32)) + zero[..., None]
    return values.clip(0, top).astype(int).reshape(w.shape), scale, zero


def gptq_words(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, less: int) -> Tensors:
    return {
        "qweight": np.ascontiguousarray(words_of(q, bits).T),
        "qzeros": words_of(zero.T - less, bits),
        "scales": np.ascontiguousarray(scale.T),
    }


def gptq(
    bits: int = 4, group: int = 64, *, symmetric: bool = True, less: int = 1, order: bool = False
) -> Packer:
    def pack(w: np.ndarray) -> Tensors:
        k = w.shape[1]
        g_idx = np.arange(k) // (group or k)
        if order:  # as act order leaves it: any input may be in any group
            g_idx = np.random.default_rng(k).permutation(g_idx)
        sorted_columns = np.argsort(g_idx, kind="stable")
        q, scale, zero = rounded(w[:, sorted_columns], bits, group or k, symmetric)
        q = q[:, np.argsort(sorted_columns)]
        packed = gptq_words(q, scale, zero, bits, less)
        return packed | {"g_idx": g_idx.astype(np.int32)}

    return pack


def awq_words(q: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Tensors:
    def words(columns: np.ndarray) -> np.ndarray:
        eights = columns.reshape(len(columns), -1, 8)[..., AWQ_COLUMNS]
        return words_of(eights.reshape(columns.shape), 4)

    return {
        "qweight": words(q.T),
        "qzeros": words(zero.T),
        "scales": np.ascontiguousarray(scale.T),
    }


def awq(group: int = 64) -> Packer:
    return lambda w: awq_words(*rounded(w, 4, group, symmetric=False))


def compressed_words(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> Tensors:
    packed = {
        "weight_packed": words_of(q, bits),
        "weight_scale": scale,
        "weight_shape": np.array(q.shape, np.int64),
    }
    if (zero != 1 << (bits - 1)).any():
        packed["weight_zero_point"] = np.ascontiguousarray(words_of(zero.T, bits).T)
    return packed


def compressed(bits: int = 4, group: int = 64, *, symmetric: bool = True) -> Packer:
    def pack(w: np.ndarray) -> Tensors:
        q, scale, zero = rounded(w, bits, group or w.shape[1], symmetric)
        return compressed_words(q, scale, zero, bits)

    return pack


def compressed_int8(w: np.ndarray) -> Tensors:
    q, scale, _ = rounded(w, 8, w.shape[1], symmetric=True)
    return {"weight": (q - 128).astype(np.int8), "weight_scale": scale}


def bf16_bits(numbers: np.ndarray) -> np.ndarray:
    """uint16, of the nearest bfloat16."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def mlx(bits: int = 4, group: int = 64) -> Packer:
    def pack(w: np.ndarray) -> Tensors:
        groups = w.reshape(len(w), -1, group)
        low, high = groups.min(-1), groups.max(-1)
        scale, bias = bf16_bits((high - low) / ((1 << bits) - 1)), bf16_bits(low)
        step, edge = ((part.astype(np.uint32) << 16).view(np.float32) for part in (scale, bias))
        q = np.rint((groups - edge[..., None]) / step[..., None]).clip(0, (1 << bits) - 1)
        words = words_of(q.astype(int).reshape(w.shape), bits).view("<u4")
        return {"weight": words, "scales": scale, "biases": bias}

    return pack


def marlin_words(q: np.ndarray) -> np.ndarray:
    """Values [n, k] -> int32 [k / 16, 2 n]: a run is 4 tiles of 16 inputs and 16 outputs."""
    n, k = q.shape
    tiles = q.T.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 1024)
    order = []
    for i in range(32):
        rows = [2 * (i % 4) + more for more in (0, 1, 8, 9)]
        base = [16 * row + i // 4 + 8 * block for block in (0, 1) for row in rows]
        order += [place + 256 * j for j in range(4) for place in base]
    order = np.array(order).reshape(-1, 8)[:, AWQ_COLUMNS].reshape(-1)
    return words_of(tiles[:, order].reshape(k // 16, n * 16), 4)


def marlin(group: int = 64) -> Packer:
    def pack(w: np.ndarray) -> Tensors:
        q, scale, _ = rounded(w, 4, group or w.shape[1], symmetric=True)
        if group:
            order, run = [i + 8 * j for i in range(8) for j in range(8)], 64
        else:
            order = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
            run = 32
        runs = scale.T.reshape(scale.shape[1], -1, run)[..., order]
        return {"qweight": marlin_words(q), "scales": runs.reshape(scale.shape[1], -1)}

    return pack


def fp8(w: np.ndarray, block: int = 128) -> Tensors:
    """Codes of the largest exponents that fit; a scale for each block."""
    n, k = w.shape
    scale = np.full((-(-n // block), -(-k // block)), 0.125, np.float32)
    scale += np.arange(scale.size, dtype=np.float32).reshape(scale.shape) / 64
    codes = np.random.default_rng(n).integers(0, 255, w.shape).astype(np.uint8)
    codes[(codes & 127) == 127] = 0
    return {"weight": codes, "weight_scale_inv": scale}


SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "rope_factors": (1.0,) * 16,
    "num_layers": 1,
    "vocab_size": 323,
}


def small_config(**changes: Any) -> ModelConfig:
    """A Llama whose columns are multiples of 64."""
    return tiny_config("MiniCPM5-1B", **(SIZES | changes))


def write_quantised(
    folder: Path,
    pack: Packer,
    settings: dict[str, Any],
    config: ModelConfig | None = None,
    only: str = "_proj.weight",
    fuse: dict[str, tuple[str, ...]] | None = None,
) -> ModelConfig:
    """A tiny checkpoint whose matrices with `only` in their names are packed; the settings go
    into config.json. `fuse` stacks some of them into one.
    """
    config = config or small_config()
    weights = write_checkpoint(folder, config, dtype="f16")
    weights = fused(weights, fuse or {})
    stored: Tensors = {}
    for name, value in weights.items():
        if only in name and value.ndim == 2:
            packed = pack(value)
            stored |= {f"{name.removesuffix('weight')}{end}": part for end, part in packed.items()}
        else:
            stored[name] = value.astype(np.float16)
    (folder / "model.safetensors").write_bytes(file_of(stored))
    write_json(folder / "config.json", config_json(config) | settings)
    return config


def notes_of(weights: Weights, linear: str, tables: str) -> list[str]:
    """Its notes where linears, and embedding and head, are stored in these schemes."""
    matrices = [name for name in weights.names() if len(weights.shape(name)) == 2]
    return weights.notes({n: SCHEMES[tables if n in ENDS else linear] for n in matrices})


def told(result: CompileResult) -> list[str]:
    """A compilation's notes without the offer to calibrate."""
    return [note for note in result.notes if not note.startswith("--calibrate would")]


def fused(weights: Tensors, fuse: dict[str, tuple[str, ...]]) -> Tensors:
    """The weights with some matrices of a layer stacked under a new name."""
    made: Tensors = {}
    for name, value in weights.items():
        whole = next((w for w, parts in fuse.items() if any(f".{p}." in name for p in parts)), None)
        if whole is None:
            made[name] = value
            continue
        part = next(part for part in fuse[whole] if f".{part}." in name)
        place = name.replace(f".{part}.", f".{whole}.")
        made[place] = np.concatenate([made[place], value]) if place in made else value
    return made
