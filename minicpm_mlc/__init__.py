"""MiniCPM4 compiled ahead of time with TVM: `Engine(bundle)` runs a bundle, `minicpm-mlc compile`
makes one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# wheels of minicpm-mlc-runtime carry tokenizers, for where it isn't installed (tools/wheels.py)
if (_carried := Path(__file__).parent / "carried").is_dir():
    sys.path.append(str(_carried))

__version__ = "0.2.0"

if TYPE_CHECKING:
    from minicpm_mlc.base import errors
    from minicpm_mlc.base.errors import MiniCPMError
    from minicpm_mlc.runtime_py.collected import Choice
    from minicpm_mlc.runtime_py.engine import Engine
    from minicpm_mlc.runtime_py.request import ChatOptions, Message, Options, Stats

__all__ = [
    "ChatOptions",
    "Choice",
    "Engine",
    "Message",
    "MiniCPMError",
    "Options",
    "Stats",
    "__version__",
    "errors",
]

_HOMES = {
    "ChatOptions": "runtime_py.request",
    "Choice": "runtime_py.collected",
    "Engine": "runtime_py.engine",
    "Message": "runtime_py.request",
    "MiniCPMError": "base.errors",
    "Options": "runtime_py.request",
    "Stats": "runtime_py.request",
}


def __getattr__(name: str) -> Any:
    # Imported when first asked for, so that the command line answers at once.
    import importlib

    if name == "errors":
        return importlib.import_module(".base.errors", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
