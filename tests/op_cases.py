"""Compile one PrimFunc for this machine and call it with NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from minicpm_mlc.bench import timing
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.operator import Operator


def cpu_kernel(operator: Operator, accumulators: int = 4, **traits: Any) -> tvm.tirx.PrimFunc:
    """An operator's kernel for a CPU."""
    return build(operator, CpuTraits(accumulators, **traits))


def gpu_kernel(operator: Operator) -> tvm.tirx.PrimFunc:
    """An operator's kernel for a GPU."""
    return build(operator, GpuTraits())


def compiled(func: tvm.tirx.PrimFunc) -> Callable[..., None]:
    """A call on NumPy arrays, outputs included; arrays are copied in, and every one is copied
    back.
    """
    run = timing.compiled(func)

    def call(*arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        run(*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            array[...] = tensor.numpy()

    return call


def nmse(got: np.ndarray, expected: np.ndarray) -> float:
    """Squared error over squared size."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(got).all()
    return float(((got - expected) ** 2).sum() / max((expected**2).sum(), 1e-30))
