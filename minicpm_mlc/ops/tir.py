"""TVM's script builder as `T`, and the types of what it builds. TVM is loaded at first use, so that
records and formats can be read without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm.script import tirx as T
else:

    class _Lazy:
        def __getattr__(self, name: str) -> Any:
            return getattr(import_module("tvm.script.tirx"), name)

    T = _Lazy()

# hand-written loops: no pass may touch them
ATTRS = {"tirx.noalias": True, "tirx.is_scheduled": True}
# a running maximum before any number; finite, so that LOWEST - LOWEST is 0 and not NaN
LOWEST = -3e38

Expr = Any  # a TIR expression; TVM's own union type says no more than this
Buffer = Any  # a TIR buffer, or what stands for one
