"""Compile one PrimFunc for this machine and call it with NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm


def compiled(func: tvm.tirx.PrimFunc) -> Callable[..., None]:
    """A call on NumPy arrays, outputs included; arrays are copied in, and every one is copied
    back.
    """
    target = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
    module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target)

    def call(*arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        module["main"](*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            array[...] = tensor.numpy()

    return call


def nmse(got: np.ndarray, expected: np.ndarray) -> float:
    """Squared error over squared size."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(got).all()
    return float(((got - expected) ** 2).sum() / max((expected**2).sum(), 1e-30))
