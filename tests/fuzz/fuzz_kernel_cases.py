"""kernel-cases.npz of a bundle: read, and the arrays made that `verify` gives to kernels."""

from __future__ import annotations

from pathlib import Path

from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, load_cases, to_bytes
from minicpm_mlc.compile.kernel_cases import cases_of
from minicpm_mlc.ops.gather_rows import GatherRows
from minicpm_mlc.ops.rope_angles import RopeAngles


def seeds() -> list[bytes]:
    operators = {"angles": RopeAngles(64), "rows": next(GatherRows.variants())}
    cases = {name: list(cases_of(name, one, None)) for name, one in operators.items()}
    return [to_bytes(cases["angles"]), to_bytes(cases["rows"]), b""]


def run(data: bytes, folder: Path) -> None:
    (folder / KERNEL_CASES).write_bytes(data)
    for case in load_cases(folder):
        for tiled in (*case.inputs, *(expected.values for expected in case.expected)):
            tiled.array()
