"""The device runtimes that TVM's wheel brings, each a library beside libtvm_runtime."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from minicpm_mlc.base.errors import BundleError

NEEDS = {  # what makes each library load
    "cuda": "NVIDIA's driver of the 580 series or later, and: pip install "
    "'nvidia-cuda-runtime>=13,<14'",
    "metal": "macOS on Apple silicon",
}


def load_device_runtime(device: str) -> None:
    """Load TVM's runtime for CUDA or Metal. Raises BundleError naming what it needs."""
    libraries = sorted(_folder("tvm").glob(f"lib/libtvm_runtime_{device}.*"))
    if not libraries:
        raise BundleError(f"TVM has no {device} runtime for this system; it takes {NEEDS[device]}")
    try:
        for path in [*_cudart(device), libraries[0]]:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BundleError(
            f"TVM's {device} runtime does not load ({error}); it takes {NEEDS[device]}"
        ) from error


def _cudart(device: str) -> Iterator[Path]:
    """CUDA's own runtime where a wheel installed it, which the system's loader doesn't find."""
    if device == "cuda":
        yield from [
            path for entry in sys.path for path in Path(entry).glob("nvidia/*/lib/libcudart.so.13")
        ][:1]


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0]) if folders else Path()
