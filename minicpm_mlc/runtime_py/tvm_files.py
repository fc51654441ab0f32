"""TVM's libraries, in its wheel or carried by ours, found and loaded without importing `tvm`."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

from minicpm_mlc.bundle.tvm_runtime import CARRIED

SUFFIXES = (".so", ".dylib", ".dll")  # the wheel of Windows has .lib files too


def tvm_library(name: str) -> Path | None:
    """The file of a library such as tvm_runtime, whatever this system calls it."""
    spec = importlib.util.find_spec("tvm")
    folders = list(spec.submodule_search_locations or []) if spec else []
    names = [f"{prefix}{name}{suffix}" for prefix in ("lib", "") for suffix in SUFFIXES]
    # TVM's own first: whoever imports tvm later must find the copy that is loaded
    places = [*(Path(folder) / "lib" for folder in folders), CARRIED]
    found = (place / each for place in places for each in names)
    return next((path for path in found if path.is_file()), None)


def load_global(path: Path) -> None:
    """Loads a library, whose symbols later ones may use. Raises OSError."""
    beside = path.parents[2] / "apache_tvm.libs"  # of the wheel of Windows: Microsoft's runtime
    if os.name == "nt" and beside.is_dir():
        os.add_dll_directory(str(beside))
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
