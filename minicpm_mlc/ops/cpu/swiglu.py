"""SwiGLU's activation: silu(gate) * up."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
from tvm.script import tirx as T

from minicpm_mlc.ops.cpu import vector


def swiglu_definition(gate_up: np.ndarray) -> np.ndarray:
    """gate_up [n, 2 I], gate first -> gate / (1 + exp(-gate)) * up, float64 [n, I]."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


def swiglu(intermediate: int) -> Any:
    """PrimFunc (gate_up f32[n, 2 * intermediate]) -> f32[n, intermediate]."""
    vectors = vector.vectors_in(intermediate, "intermediate_size")
    block = gcd(vectors, 64)
    blocks = vectors // block

    def activate(n: Any, gate_up: Any, out: Any) -> None:
        def columns(task: Any) -> None:
            row, first = task // blocks, task % blocks * (block * 16)
            with T.serial(block) as j:
                column = first + j * 16
                vector.store(out, activated(gate_up, row, column, intermediate), row, column)

        vector.spread(n * blocks, columns, serial_below=32)

    @T.prim_func(private=True)
    def swiglu(gate_up_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        gate_up = T.match_buffer(gate_up_handle, (n, 2 * intermediate), "float32")
        out = T.match_buffer(out_handle, (n, intermediate), "float32")
        activate(n, gate_up, out)

    return swiglu


def activated(gate_up: Any, row: Any, column: Any, intermediate: int) -> Any:
    """silu(gate) * up of 16 columns."""
    gate = T.Bind(vector.load(gate_up, row, column))
    return T.Bind(
        gate
        / (vector.exp(-gate) + vector.splat(1.0))
        * vector.load(gate_up, row, column + intermediate)
    )
