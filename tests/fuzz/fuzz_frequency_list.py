"""FR-Spec's lists as .json and .npy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from minicpm_mlc.compile.frspec import read_list


def seeds() -> list[bytes]:
    file = io.BytesIO()
    np.save(file, np.array([5, 1, 3], np.int32))
    return [b"[5, 1, 3]", file.getvalue()]


def run(data: bytes, folder: Path) -> None:
    path = folder / ("list.npy" if data[:1] == b"\x93" else "list.json")
    path.write_bytes(data)
    read_list(path, 100)
