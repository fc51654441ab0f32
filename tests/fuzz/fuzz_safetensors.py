"""model.safetensors and its index: the header, and the rows of what it names."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from minicpm_mlc.compile.checkpoint import find_tensors
from minicpm_mlc.compile.checkpoint.safetensors import STORED

TENSORS = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b.weight": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [32, 44]},
    "c.inv_freq": {"dtype": "I64", "shape": [2], "data_offsets": [44, 60]},
}
NAMES = ["a.weight", "b.weight", "c.inv_freq"]
INDEX = {"metadata": {}, "weight_map": dict.fromkeys(NAMES, "model-1.safetensors")}


def file_of(header: dict, size: int = 60) -> bytes:
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + bytes(size)


def seeds() -> list[bytes]:
    huge = {"a": {"dtype": "F32", "shape": [10**18, 10**18, 0], "data_offsets": [0, 0]}}
    return [file_of(TENSORS), file_of({}, 0), file_of(huge, 0), json.dumps(INDEX).encode()]


def run(data: bytes, folder: Path) -> None:
    """Bytes that begin with a bracket are the index of a file that is whole."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    for file in folder.iterdir():
        file.unlink()
    if data[:1] == b"{":
        index.write_bytes(data)
        (folder / "model-1.safetensors").write_bytes(file_of(TENSORS))
    else:
        single.write_bytes(data)
    for name, file in list(find_tensors(folder).items())[:8]:
        entry = file.entries[name]
        if entry.dtype in STORED and 1 <= len(entry.shape) <= 2:  # a model's tensors are these
            file.rows(name, 0, 2)
