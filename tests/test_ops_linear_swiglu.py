"""The gate and up product with SwiGLU and rounding in it: the same bits as the three steps, and
near its definition.
"""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, nmse
from test_ops_linear_int8 import HERE, linear_int8, stored

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.cpu.int8_dot import DOTS
from minicpm_mlc.ops.cpu.linear_int8 import CACHE_ROWS
from minicpm_mlc.ops.cpu.linear_swiglu import FEW_ROWS
from minicpm_mlc.ops.linear import linear_definition
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8, linear_swiglu_int8_definition
from minicpm_mlc.ops.quantize_rows import numbers_of, quantized_shape, words_of
from minicpm_mlc.ops.swiglu import Swiglu, swiglu_definition

pytestmark = pytest.mark.skipif(not HERE, reason="this processor has no int8 dot products")
ROWS = [
    1,
    2,
    FEW_ROWS,
    FEW_ROWS + 1,
    8,
    15,
    CACHE_ROWS + 5,
]  # on the stack and not, every tile size, two parts
SHAPES = [
    (96, 1088, "w8"),
    (96, 1088, "w4"),
    (32, 32, "w4"),
]  # three tasks, groups over two runs; one of each


def fused(intermediate: int, k: int, name: str, dot: str):
    """The operator and what belongs to it: (call, stored arrays, weights, scheme, factor)."""
    arrays, weights, scheme = stored(name, 2 * intermediate, k)
    factor = DOTS[dot].factor(scheme)
    return (
        compiled(cpu_kernel(LinearSwigluInt8(intermediate, k, scheme, factor), int8_dot=dot)),
        arrays,
        weights,
        scheme,
        factor,
    )


@pytest.mark.parametrize("dot", HERE)
@pytest.mark.parametrize("intermediate, k, name", SHAPES)
def test_equals_the_three_steps_bit_by_bit_and_its_definition_and_is_near_the_exact_product(
    dot, name, intermediate, k
):
    call, arrays, weights, scheme, factor = fused(intermediate, k, name, dot)
    product, activate = (
        compiled(linear_int8(2 * intermediate, k, scheme, dot)),
        compiled(cpu_kernel(Swiglu(intermediate))),
    )
    for m in ROWS:
        x = np.random.default_rng(m).standard_normal((m, k), dtype=np.float32)
        words, out = words_of(x, factor), np.empty(quantized_shape(m, intermediate), np.int32)
        gate_up, activated = (
            np.empty((m, 2 * intermediate), np.float32),
            np.empty((m, intermediate), np.float32),
        )
        product(words, *arrays, gate_up)
        activate(gate_up, activated)
        call(words, *arrays, out)
        assert np.array_equal(out, words_of(activated, factor)), m
        assert nmse(numbers_of(out), linear_swiglu_int8_definition(x, weights)) < 1e-5, (
            m
        )  # a tie may round either way
        assert nmse(numbers_of(out), swiglu_definition(linear_definition(x, weights))) <= 5e-4, m


def test_a_row_is_the_same_whatever_rows_are_beside_it():
    call, arrays, _, _, factor = fused(96, 1088, "w4", HERE[0])
    words = words_of(np.random.default_rng(0).standard_normal((15, 1088), dtype=np.float32), factor)
    together, alone = (np.empty(quantized_shape(m, 96), np.int32) for m in (15, 1))
    call(words, *arrays, together)
    for row in range(15):
        call(words[row : row + 1], *arrays, alone)
        assert np.array_equal(alone[0], together[row])


def test_an_intermediate_size_that_cuts_a_group_is_refused():
    _, _, scheme = stored("w4", 96, 32)
    with pytest.raises(CompileError, match="multiple of 32"):
        cpu_kernel(LinearSwigluInt8(48, 32, scheme, -8), int8_dot=HERE[0])
