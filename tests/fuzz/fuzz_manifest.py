"""manifest.json of a bundle: inspected, and the context that it leaves room for."""

from __future__ import annotations

import json
from pathlib import Path

from fake_library import manifest

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.bundle.state import StateEntry
from minicpm_mlc.inspect.describe import describe
from minicpm_mlc.runtime_py.defaults import choose_context


def seeds() -> list[bytes]:
    keys = StateEntry("keys", (0,), (1, 8, 64), "float32", "page")
    target = {"device": "cpu", "triple": "x86_64-linux-gnu", "cpu": "x86-64-v3", "features": ["avx2"]}
    made = manifest(
        state=[keys], target=target, files={"model.so": {"bytes": 1, "sha256": "0" * 64}}
    )
    return [made.to_bytes()]


def run(data: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(data)
    json.dumps(describe(str(folder)))
    choose_context(Manifest.load(folder), None, 1 << 33)
