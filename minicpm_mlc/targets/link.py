"""Linking with zig, which brings a linker for every platform by pip."""

from __future__ import annotations

import subprocess
import sys

from ..errors import CompileError

PLATFORMS = {"x86_64": "x86_64-linux-gnu.2.17", "aarch64": "aarch64-linux-gnu.2.17"}


def link_shared(machine: str, library: str, objects: list[str]) -> None:
    """Link objects into a shared library for Linux on `machine`, the same bytes each time.

    TVM's runtime and the C library are found in the process that loads it. Raises CompileError when zig fails.
    """
    flags = ["-shared", "-nostdlib", "-s", "-Wl,-z,undefs", "-Wl,--build-id=none"]
    command = [sys.executable, "-m", "ziglang", "cc", "-target", PLATFORMS[machine], *flags, "-o", library]
    result = subprocess.run([*command, *objects], capture_output=True, text=True, check=False)
    if result.returncode:
        raise CompileError(f"linking {library} failed: {result.stderr.strip()[-2000:]}; try: pip install ziglang")
