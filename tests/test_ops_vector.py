"""The vector functions that replace libm, and the choice between one thread and all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from op_cases import compiled, cpu_kernel
from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.attend import AttendDecode
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.rope_angles import RopeAngles
from minicpm_mlc.ops.swiglu import Swiglu
from minicpm_mlc.targets.lowering import cpu_pipeline


def mapped(
    function: Callable[[Any], Any], serial_below: int = 2
) -> Callable[[np.ndarray], np.ndarray]:
    """`function` of a vector, applied to an array of [n, 16] float32."""

    def body(n: Any, x: Any, out: Any) -> None:
        vector.spread(
            n, lambda r: vector.store(out, function(vector.load(x, r, 0)), r, 0), serial_below
        )

    @T.prim_func(private=True)
    def apply(x_handle: T.handle, out_handle: T.handle):
        T.func_attr(vector.ATTRS)
        n = T.int64()
        x = T.match_buffer(x_handle, (n, 16), "float32")
        out = T.match_buffer(out_handle, (n, 16), "float32")
        body(n, x, out)

    kernel = compiled(apply)

    def call(x: np.ndarray) -> np.ndarray:
        out = np.full_like(x, np.nan)
        kernel(x, out)
        return out

    return call


EDGES = np.array(
    [0, -0.0, 1, -1, 0.5, -0.5, 88, -87, 1e-30, 20.25, -20.25, 3, 7, -7, 60, -60], np.float32
)


@pytest.mark.parametrize(
    "function,exact,limit", [(vector.exp2, np.exp2, 2e-7), (vector.exp, np.exp, 1e-6)]
)
def test_exponentials_are_accurate_and_total(function: Any, exact: Any, limit: float):
    x = (
        np.concatenate([EDGES, np.random.default_rng(0).uniform(-87, 88, 4096)])
        .astype(np.float32)
        .reshape(-1, 16)
    )
    call = mapped(function)
    assert np.abs(call(x) / exact(x.astype(np.float64)) - 1).max() < limit
    ends = np.array([[-np.inf, -1e30, -200, -150, np.inf, 1e30, 200, 150] * 2], np.float32)
    np.testing.assert_array_equal(
        call(ends), np.array([[0] * 4 + [np.inf] * 4] * 2, np.float32).reshape(1, 16)
    )
    assert np.isnan(call(np.full((1, 16), np.nan, np.float32))).all()


def test_sine_and_cosine_hold_to_large_angles():
    x = np.random.default_rng(0).uniform(-2e5, 2e5, (256, 16)).astype(np.float32)
    x[0], x[1] = EDGES, np.arange(16) * np.float32(np.pi / 4)
    for part, exact in enumerate((np.sin, np.cos)):
        call = mapped(lambda v, part=part: vector.sin_cos(v)[part])
        assert np.abs(call(x) - exact(x.astype(np.float64))).max() < 2e-7


def test_fold_visits_every_lane():
    x = np.random.default_rng(0).permutation(64).astype(np.float32).reshape(4, 16)
    largest = mapped(lambda v: vector.splat(vector.fold(T.max, v)))(x)
    total = mapped(lambda v: vector.splat(vector.fold(lambda a, b: a + b, v)))(x)
    np.testing.assert_array_equal(largest, np.repeat(x.max(-1, keepdims=True), 16, -1))
    np.testing.assert_array_equal(total, np.repeat(x.sum(-1, keepdims=True), 16, -1))


@pytest.mark.parametrize("n", [1, 4, 5, 300])
def test_spread_covers_every_row_on_either_path(n: int):
    x = np.random.default_rng(n).standard_normal((n, 16)).astype(np.float32)
    np.testing.assert_array_equal(mapped(lambda v: v + v, serial_below=5)(x), x + x)


def test_width_that_leaves_a_vector_partly_filled_is_refused():
    with pytest.raises(CompileError, match=r"intermediate_size is 100.*multiple of 16"):
        cpu_kernel(Swiglu(100))


@pytest.mark.parametrize(
    "name,func",
    [
        ("attend", cpu_kernel(AttendDecode(16, 2, 64, F16))),
        ("angles", cpu_kernel(RopeAngles(128))),
        ("swiglu", cpu_kernel(Swiglu(64))),
    ],
    ids=["attend", "angles", "swiglu"],
)
def test_kernels_call_no_libm_on_arm(name: str, func: Any):
    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}
    )
    module = tvm.compile(
        tvm.IRModule({name: func.with_attr("global_symbol", name)}),
        target,
        tir_pipeline=cpu_pipeline(),
    )
    lines = [line.split() for line in module.mod.inspect_source("asm").splitlines()]
    called = {line[1] for line in lines if len(line) == 2 and line[0] == "bl"}
    assert any(symbol.startswith("__tvm") for symbol in called)
    assert {symbol for symbol in called if not symbol.startswith(("TVM", "__tvm", name))} <= {
        "memset",
        "memcpy",
    }
