"""kernel-cases.npz of a bundle: read, and the arrays made that `verify` gives to kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, Case, Expected, Tiled, load_cases, to_bytes


def seeds() -> list[bytes]:
    tile = np.arange(8, dtype=np.float32).reshape(2, 4)
    values = Expected(1, Tiled(tile, (4, 8)), np.array([0, 1, 2]))
    record = {"operator": "swiglu", "width": 8}
    case = Case("swiglu_0", record, 1e-7, [Tiled(tile, (4, 8)), Tiled.whole(tile)], [values])
    return [to_bytes([case]), b""]


def run(data: bytes, folder: Path) -> None:
    (folder / KERNEL_CASES).write_bytes(data)
    for case in load_cases(folder):
        for tiled in (*case.inputs, *(expected.values for expected in case.expected)):
            tiled.array()
