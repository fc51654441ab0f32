"""tvm_ffi, without what it would drag in."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def _import_without_torch(name: str) -> Any:
    """tvm_ffi imports torch wherever it is installed, which takes seconds; only NumPy arrays are
    handed to it here.
    """
    if "torch" in sys.modules:
        return importlib.import_module(name)
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["torch"]


tvm_ffi = _import_without_torch("tvm_ffi")
