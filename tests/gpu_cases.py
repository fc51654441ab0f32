"""Compile PrimFuncs for OpenCL and call them with NumPy arrays, on the first device there is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm

from minicpm_mlc.targets import get_target


def opencl_device() -> tvm.runtime.Device | None:
    try:
        device = tvm.device("opencl", 0)
        return device if device.exist else None
    except Exception:  # no native runtime
        return None


DEVICE = opencl_device()
needs_opencl = pytest.mark.skipif(DEVICE is None, reason="no OpenCL device with its runtime: make devices")


def compiled(func: tvm.tirx.PrimFunc) -> Callable[..., None]:
    """A call on NumPy arrays, outputs included, as op_cases.compiled makes it for the CPU."""
    target = get_target("opencl")
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    built = tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline())
    with tempfile.TemporaryDirectory() as folder:  # what the compiler holds can't run; what a file holds can
        path = Path(folder) / "kernel.so"
        built.export_library(str(path), fcompile=target.link)
        library = tvm.runtime.load_module(str(path))

    def call(*arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(array, DEVICE) for array in arrays]
        library["main"](*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            array[...] = tensor.numpy()

    return call
