"""tensor-cache.json of a bundle: where its weights lie."""

from __future__ import annotations

import json
from pathlib import Path

from fake_library import manifest

from minicpm_mlc.bundle.manifest import Bundle
from minicpm_mlc.bundle.params import TENSOR_CACHE, load_params

DATA = "params_shard_0.bin"
FORM = {"format": "raw"}
RECORDS = [
    {"name": "a", "shape": [2, 4], "dtype": "float32", "byteOffset": 0, "nbytes": 32} | FORM,
    {"name": "b", "shape": [8], "dtype": "bfloat16", "byteOffset": 64, "nbytes": 16} | FORM,
]
SHARD = {"dataPath": DATA, "nbytes": 80, "format": "raw-shard", "md5sum": "", "records": RECORDS}


def seeds() -> list[bytes]:
    return [json.dumps({"metadata": {"BitsPerParam": 24.0}, "records": [SHARD]}).encode()]


def run(data: bytes, folder: Path) -> None:
    (folder / TENSOR_CACHE).write_bytes(data)
    (folder / DATA).write_bytes(bytes(80))
    files = {TENSOR_CACHE: {"bytes": len(data), "sha256": ""}, DATA: {"bytes": 80, "sha256": ""}}
    for array in load_params(Bundle(folder, manifest(params=["a", "b"], files=files))):
        array.sum()
