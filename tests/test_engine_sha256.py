"""native/engine's SHA-256, portable and by the processor's instructions, against hashlib."""

from __future__ import annotations

import hashlib
import platform
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from minicpm_mlc.targets.link import zig

SOURCE = Path(__file__).parents[1] / "native" / "engine" / "src"
MAIN = Path(__file__).with_name("engine_sha256.cc")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
HERE = f"{platform.machine()}-linux-gnu.2.17"  # as minicpm-run is built
ARM64 = pytest.param("aarch64-linux-musl", marks=pytest.mark.campaign)  # libc++ anew: a minute


@pytest.mark.parametrize("target", [HERE, ARM64])
def test_digests_are_hashlibs(target: str, tmp_path: Path) -> None:
    if target != HERE and not QEMU:
        pytest.skip("no qemu-aarch64")
    program = tmp_path / "sha256"
    names = ("sha256", "sha256_portable", "sha256_x86", "sha256_arm64")
    sources = [str(MAIN), *(str(SOURCE / f"{name}.cc") for name in names)]
    static = [] if target == HERE else ["-static"]
    options = ["-target", target, "-std=c++17", "-O2", *static, f"-I{SOURCE}"]
    zig("c++", *options, "-o", str(program), *sources)
    runner = [] if target == HERE else [str(QEMU)]
    draw = random.Random(0)
    for size in (0, 1, 55, 56, 63, 64, 65, 191, 192, 1000, 4097):
        data = draw.randbytes(size)
        said = subprocess.run([*runner, str(program)], input=data, capture_output=True, check=True)
        portable, instructions = said.stdout.decode().split()
        expected = hashlib.sha256(data).hexdigest()
        assert portable == expected
        assert instructions == expected or (instructions == "none" and target == HERE)
