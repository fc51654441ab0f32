"""Quantised checkpoints of every form: a safetensors file whose metadata is what config.json says
of the form, rows of each tensor, and its integers in every scheme.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import packers
from checkpoints import config_json

from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.ops.formats.weights import SCHEMES

READER = True
MUTATIONS = 600
CONFIG = packers.small_config(
    hidden_size=64, intermediate_size=64, num_heads=2, num_kv_heads=1, vocab_size=64
)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "symmetric": True}}},
    "kv_cache_scheme": None,
}
MLX = {"group_size": 32, "bits": 4, "mode": "affine"}
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
NOTHING: dict[str, tuple[str, ...]] = {}
FORMS: list[tuple[packers.Packer, dict[str, Any], dict[str, tuple[str, ...]]]] = [
    (packers.gptq(group=32), {"quantization_config": GPTQ}, NOTHING),
    (packers.gptq(symmetric=False, less=0), {"quantization_config": GPTQ | {"sym": 0}}, NOTHING),
    (packers.awq(32), {"quantization_config": {"quant_method": "awq", "version": "gemm"}}, NOTHING),
    (packers.compressed(group=32), {"quantization_config": COMPRESSED}, NOTHING),
    (packers.compressed(symmetric=False), {"quantization_config": COMPRESSED}, NOTHING),
    (packers.compressed_int8, {"quantization_config": COMPRESSED}, NOTHING),
    (packers.mlx(group=32), {"quantization": MLX}, NOTHING),
    (packers.mlx(6, 32), {"quantization": MLX | {"bits": 6}}, NOTHING),
    (packers.marlin(32), {}, FUSED),
    (packers.fp8, {"quantization_config": {"quant_method": "fp8"}}, NOTHING),
]


def seeds() -> list[bytes]:
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for pack, settings, fuse in FORMS:
            packers.write_quantised(Path(folder), pack, settings, CONFIG, fuse=fuse)
            made.append(with_metadata(Path(folder) / "model.safetensors", settings))
    return made


def with_metadata(path: Path, settings: dict[str, Any]) -> bytes:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": settings} | json.loads(data[8 : 8 + length])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def run(data: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config_json(CONFIG) | settings_of(data)))
    weights = open_checkpoint(folder, CONFIG)
    weights.schemes()
    packers.notes_of(weights, "w4", "w8")
    for name, tensor in weights.tensors.items():
        tensor.rows(0, 3)
        for scheme in ("w4", "w4z", "w4a", "w8") if len(tensor.shape) == 2 else ():
            parts = weights.carried(name, SCHEMES[scheme], 1, min(20, tensor.shape[0]))
            assert parts is None or all(np.isfinite(part).all() for part in parts.values())


def settings_of(data: bytes) -> dict[str, Any]:
    """The metadata, where it can be read."""
    length = int.from_bytes(data[:8], "little")
    try:
        found = json.loads(data[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
