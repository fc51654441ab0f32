"""Calls of kernels from the Relax functions that running a part builds.

TVM is imported where it is called, so that models can be described without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor


def constant(array: np.ndarray) -> Tensor:
    """A tensor that is stored in the library."""
    from tvm.relax.frontend.nn import Tensor

    return Tensor.from_const(array)
