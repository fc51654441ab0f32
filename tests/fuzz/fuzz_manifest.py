"""manifest.json of a bundle: inspected, and the context that it leaves room for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from checkpoints import tiny_config

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.bundle.params import TENSOR_CACHE
from minicpm_mlc.compile.compilation import Compilation
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import SparseConfig
from minicpm_mlc.compile.model.registry import draft_config_like
from minicpm_mlc.compile.storage import choose_precision, draft_precision
from minicpm_mlc.inspect.describe import describe
from minicpm_mlc.runtime_py.defaults import choose_context
from minicpm_mlc.targets import get_target


def seeds() -> list[bytes]:
    config = tiny_config("MiniCPM4.1-8B", num_layers=6, sparse=SparseConfig(topk=2, window_size=64))
    return [made(config, None), made(config, draft_config_like(config, "eagle3"))]


def made(config, head: DraftConfig | None) -> bytes:
    target = get_target("cpu", "x86-64-v3", None, None)
    precision = choose_precision("w4", None, "f32", None, target)
    draft = (head, draft_precision(precision, None)) if head else None
    manifest = Compilation(config, precision, target, 1024, 64, draft).manifest
    names = ("model.so", "tensor-cache.json", "params_shard_0.bin")
    files = {name: {"bytes": 1, "sha256": "0" * 64} for name in names}
    return replace(manifest, files=files, params=["a", "b"]).to_bytes()


def run(data: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(data)
    (folder / TENSOR_CACHE).write_text(json.dumps({"metadata": {"BitsPerParam": 5}, "records": []}))
    json.dumps(describe(str(folder)))
    choose_context(Manifest.load(folder), None, 1 << 33)
