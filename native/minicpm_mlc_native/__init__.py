"""Device runtimes that TVM's wheel lacks, loaded through its entry points: OpenCL and Vulkan."""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from pathlib import Path

TVM = "0.27."  # the C++ classes of the libraries are laid out as in this version
RUNTIMES = ("opencl", "vulkan")


def load() -> None:
    """Register the runtimes with TVM, whose runtime library is loaded already. A runtime that TVM
    has itself stays.

    Drivers are opened when a device is first used. Raises ImportError beside another version of
    TVM.
    """
    installed = version("apache-tvm")
    if not installed.startswith(TVM):
        raise ImportError(
            f"minicpm-mlc-native is for apache-tvm {TVM}*, found {installed}; build it again"
        )
    for runtime in RUNTIMES:  # those whose headers were there when this was built
        for library in Path(__file__).parent.glob(f"*minicpm_{runtime}.*"):
            ctypes.CDLL(str(library))
