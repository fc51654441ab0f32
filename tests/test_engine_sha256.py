"""native/engine's SHA-256, portable and by the processor's instructions, against hashlib."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from engine_process import HERE, built

MAIN = Path(__file__).with_name("engine_sha256.cc")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
ARM64 = pytest.param("aarch64-linux-musl", marks=pytest.mark.campaign)  # the engine anew: a minute


@pytest.mark.parametrize("target", [HERE, ARM64])
def test_digests_are_hashlibs(target: str) -> None:
    if target != HERE and not QEMU:
        pytest.skip("no qemu-aarch64")
    runner = [] if target == HERE else [str(QEMU)]
    command = [*runner, str(built(MAIN, target))]
    draw = random.Random(0)
    for size in (0, 1, 55, 56, 63, 64, 65, 191, 192, 1000, 4097):
        data = draw.randbytes(size)
        said = subprocess.run(command, input=data, capture_output=True, check=True).stdout
        portable, instructions = said.decode().split()
        expected = hashlib.sha256(data).hexdigest()
        assert portable == expected
        assert instructions == expected or (instructions == "none" and target == HERE)
