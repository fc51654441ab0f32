"""tensor-cache.json of a bundle: where its weights lie."""

from __future__ import annotations

import json
from pathlib import Path

from fake_library import manifest

from minicpm_mlc.bundle.manifest import Bundle
from minicpm_mlc.bundle.params import TENSOR_CACHE, load_params

RECORDS = [
    {"name": "a", "shape": [2, 4], "dtype": "float32", "byteOffset": 0, "nbytes": 32},
    {"name": "b", "shape": [8], "dtype": "bfloat16", "byteOffset": 32, "nbytes": 16},
]
SHARD = {"dataPath": "params_shard_0.bin", "nbytes": 64, "format": "raw-shard", "records": RECORDS}


def seeds() -> list[bytes]:
    return [json.dumps({"metadata": {}, "records": [SHARD]}).encode()]


def run(data: bytes, folder: Path) -> None:
    (folder / TENSOR_CACHE).write_bytes(data)
    (folder / "params_shard_0.bin").write_bytes(bytes(64))
    files = {"params_shard_0.bin": {"bytes": 64, "sha256": ""}}
    for array in load_params(Bundle(folder, manifest(params=["a", "b"], files=files))):
        array.sum()
