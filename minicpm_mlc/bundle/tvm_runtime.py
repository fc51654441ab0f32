"""Which TVM is here: the compiler's distribution, or its runtime library alone, which wheels of
minicpm-mlc-runtime carry.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

CARRIED = Path(__file__).parents[1] / "tvm_runtime"  # the libraries, and the file of their version
VERSION = "VERSION"


def tvm_version() -> str | None:
    """The version of apache-tvm that runs bundles; None where there is none."""
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        file = CARRIED / VERSION
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None
