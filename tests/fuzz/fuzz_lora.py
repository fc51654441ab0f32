"""A LoRA adapter: its weights, whose metadata is adapter_config.json, merged into a base."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import packers
from checkpoints import write_checkpoint
from fuzz_forms import CONFIG, settings_of, with_metadata

from minicpm_mlc.compile.checkpoint import Weights, open_checkpoint
from minicpm_mlc.compile.checkpoint.adapters import Adapters

READER = True
PREFIX, Q = "base_model.model.", "model.layers.0.self_attn.q_proj"
SETTINGS = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "bias": "none",
    "use_rslora": True,
    "alpha_pattern": {".*q_proj": 8},
    "rank_pattern": {},
    "init_lora_weights": True,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "/models/MiniCPM4-8B",
}
PAIR = {f"{Q}.lora_A.weight": np.ones((2, 64)), f"{Q}.lora_B.weight": np.ones((64, 2))}
SAVED = {"model.embed_tokens.weight": np.ones((72, 64)), "lm_head.weight": np.ones((72, 64))}
TABLE = {
    "model.embed_tokens.lora_embedding_A": np.ones((2, 64)),
    "model.embed_tokens.lora_embedding_B": np.ones((64, 2)),
}
LENGTHS = {f"{Q}.lora_magnitude_vector.weight": np.ones(64)}
CASES = [
    (PAIR, SETTINGS),
    (PAIR | SAVED, SETTINGS | {"modules_to_save": ["embed_tokens", "lm_head"]}),
    (PAIR | LENGTHS, SETTINGS | {"use_dora": True}),
    (TABLE, SETTINGS),
]


@functools.cache
def base() -> tuple[tempfile.TemporaryDirectory[str], Weights]:
    """The base's folder, kept as long as the program runs, and its weights."""
    folder = tempfile.TemporaryDirectory()
    write_checkpoint(folder.name, CONFIG)
    return folder, open_checkpoint(folder.name, CONFIG)


def seeds() -> list[bytes]:
    made = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        for tensors, settings in CASES:
            stored = {PREFIX + name: part.astype(np.float32) for name, part in tensors.items()}
            path.write_bytes(packers.file_of(stored))
            made.append(with_metadata(path, settings))
    return made


def run(data: bytes, folder: Path) -> None:
    settings: dict[str, Any] = settings_of(data)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_bytes(data)
    adapters = Adapters.open([f"{folder}:0.5"])
    merged = adapters.weights(base()[1], CONFIG)
    for name in merged.names():
        assert merged.rows(name, 0, 3).dtype == np.float32
