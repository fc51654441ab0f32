"""A new scheme needs no change elsewhere: it is listed, and kernels read its minimums and its
larger unsigned values.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import gpu_cases
import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, gpu_kernel, nmse
from test_ops_linear_int8 import HERE, linear_int8

from minicpm_mlc.ops.cpu.int8_dot import DOTS
from minicpm_mlc.ops.embed import Embed, embed_definition
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Parts
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.formats.weights.int8 import Int8Values
from minicpm_mlc.ops.linear import Linear, linear_definition
from minicpm_mlc.ops.linear_int8 import linear_int8_definition
from minicpm_mlc.ops.quantize_rows import words_of

N, K, ROWS = 48, 320, (1, 3, 19, 70)


class SevenBits(Int8Values):
    """0..127, a byte each."""

    bits = 7
    unsigned = True


@dataclass(frozen=True)
class Minimums(GroupScheme):
    """w = scale * value + minimum, value 0..127."""

    name = "minimums"
    values = SevenBits()
    has_minimum = True

    def fit(self, groups: np.ndarray, importance: np.ndarray | None = None) -> Parts:
        minimum = groups.min(0).astype(np.float16)
        return {"minimum": minimum, "scale": ((groups.max(0) - minimum) / 127).astype(np.float16)}


def matrix(activations: str) -> tuple[Minimums, list[np.ndarray], np.ndarray]:
    """The scheme in its layout, stored arrays of an N x K matrix far from zero, and its weights."""
    scheme = Minimums().beside(activations)
    parts = scheme.quantize(3 + np.random.default_rng(0).standard_normal((N, K), np.float32))
    return scheme, list(scheme.pack(parts).values()), scheme.dequantize(parts, np.float64)


@pytest.mark.parametrize(
    "compile_here, kernel",
    [
        (compiled, cpu_kernel),
        pytest.param(gpu_cases.compiled, gpu_kernel, marks=gpu_cases.needs_opencl),
    ],
    ids=["cpu", "opencl"],
)
def test_linear_adds_the_minimums(compile_here, kernel):
    scheme, stored, weights = matrix("f32")
    call = compile_here(kernel(Linear(N, K, scheme, scale=0.25)))
    for m in ROWS:
        x = np.random.default_rng(m).standard_normal((m, K), dtype=np.float32)
        out = np.empty((m, N), np.float32)
        call(x, *stored, out)
        assert nmse(out, linear_definition(x, weights, scale=0.25)) <= 1e-11, m


@pytest.mark.parametrize("dot", HERE)
def test_int8_products_add_the_minimums(dot):
    scheme, stored, weights = matrix("int8")
    call = compiled(linear_int8(N, K, scheme, dot, scale=0.25))
    for m in ROWS:
        x = np.random.default_rng(m).standard_normal((m, K), dtype=np.float32)
        out = np.empty((m, N), np.float32)
        call(words_of(x, DOTS[dot].factor(scheme)), *stored, out)
        assert nmse(out, linear_int8_definition(x, weights, scale=0.25)) <= 1e-11, m


@pytest.mark.parametrize(
    "compile_here, kernel, activations",
    [
        (compiled, cpu_kernel, "f32"),
        (compiled, cpu_kernel, "int8"),
        pytest.param(gpu_cases.compiled, gpu_kernel, "f32", marks=gpu_cases.needs_opencl),
    ],
    ids=["cpu", "cpu-int8", "opencl"],
)
def test_embed_adds_the_minimums(compile_here, kernel, activations):
    scheme, stored, table = matrix(activations)
    ids, out = np.arange(N, dtype=np.int32)[::-1].copy(), np.empty((N, K), np.float32)
    compile_here(kernel(Embed(N, K, scheme, scale=12.0)))(ids, *stored, out)
    assert nmse(out, embed_definition(ids, table, 12.0)) <= 1e-13


def test_schemes_are_listed_without_numpy_and_described_without_tvm():
    code = """
import sys
from minicpm_mlc.ops.formats.weights import SCHEMES
print(*SCHEMES, "numpy" in sys.modules)
sizes = [sum(t.nbytes for t in s.tensors(64, 64)) for s in SCHEMES.values()]
print(sizes, any(name in ("tvm", "tvm_ffi") for name in sys.modules))
"""
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    names = lines[0].split()
    assert names == [*SCHEMES, "False"] and {"f32", "f16", "bf16", "w8", "w4"} <= {*names}
    sizes = [sum(t.nbytes for t in scheme.tensors(64, 64)) for scheme in SCHEMES.values()]
    assert lines[1] == f"{sizes} False"


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_has_the_name_of_its_file(name):
    assert SCHEMES[name].name == name and "w3" not in SCHEMES
    with pytest.raises(KeyError):
        SCHEMES["w3"]
