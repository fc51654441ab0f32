"""The functions that compute shapes don't depend on the order in which TVM happened to write
them.
"""

from __future__ import annotations

import tvm
from tvm.relax import GlobalVar
from tvm.script import tirx as T

from minicpm_mlc.compile.shape_functions import order_shape_functions


@T.prim_func(private=True, s_tir=True)
def ascending(H: T.Buffer((T.int64(4),), "int64")):
    T.func_attr({"tirx.is_host_func": True})
    H[T.int64(1)] = H[T.int64(0)] * T.int64(8)
    H[T.int64(2)] = H[T.int64(0)] * T.int64(16)


@T.prim_func(private=True, s_tir=True)
def descending(H: T.Buffer((T.int64(4),), "int64")):
    T.func_attr({"tirx.is_host_func": True})
    H[T.int64(2)] = H[T.int64(0)] * T.int64(16)
    H[T.int64(1)] = H[T.int64(0)] * T.int64(8)


@T.prim_func(private=True, s_tir=True)
def another(H: T.Buffer((T.int64(4),), "int64")):
    T.func_attr({"tirx.is_host_func": True})
    H[T.int64(3)] = H[T.int64(0)] * T.int64(2)


def ordered(*functions):
    names = [GlobalVar(f"shape_func{i}") for i in range(len(functions))]
    module = tvm.IRModule(dict(zip(names, functions, strict=True)))
    return order_shape_functions(module)  # pyright: ignore[reportCallIssue]


def test_the_order_of_statements_and_of_functions_does_not_matter():
    expected = ordered(ascending, another)
    assert len(expected.functions) == 2
    for functions in [
        (descending, another),
        (another, ascending),
        (ascending, descending, another),
    ]:
        assert ordered(*functions).script() == expected.script()


def test_what_is_computed_stays():
    (function,) = ordered(descending).functions.values()
    tvm.ir.assert_structural_equal(function, ascending)
