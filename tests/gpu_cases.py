"""Compile PrimFuncs for a device and call them with NumPy arrays, on the first device of its kind
that is here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from minicpm_mlc.targets import Target, get_target


@cache
def device_named(name: str) -> Any:
    """TVM's device, None without the device, its driver or its runtime."""
    try:
        device: Any = tvm.device(name, 0)
        return device if device.exist else None
    except Exception:  # no runtime
        return None


DEVICE = device_named("opencl")
needs_opencl = pytest.mark.skipif(
    DEVICE is None, reason="no OpenCL device with its runtime: make devices"
)


def compiled(func: tvm.tirx.PrimFunc, name: str = "opencl") -> Callable[..., None]:
    """A call on NumPy arrays, outputs included; arrays are copied in, and every one is copied
    back.
    """
    return compiled_together({"main": func}, name)["main"]


def compiled_together(
    funcs: dict[str, tvm.tirx.PrimFunc], name: str, target: Target | None = None
) -> dict[str, Callable[..., None]]:
    """The same for many functions in one library, by their names in it."""
    target, device = target or get_target(name), device_named(name)
    module = tvm.IRModule(
        {key: func.with_attr("global_symbol", key) for key, func in funcs.items()}
    )
    built = tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline())
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # what the compiler holds can't run; what a file holds can
        path = Path(folder) / "kernels.so"
        target.export(built, str(path))
        library = tvm.runtime.load_module(str(path))

    def call(key: str, *arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(array, device) for array in arrays]
        with pytest.MonkeyPatch.context() as patch:
            # PoCL compiles at the first call, for longer than all calls take if it optimises
            patch.setenv("POCL_EXTRA_BUILD_FLAGS", "-cl-opt-disable")
            library[key](*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            array[...] = tensor.numpy()

    return {key: lambda *arrays, key=key: call(key, *arrays) for key in funcs}
