"""What the operator grid doesn't ask of the GPU kernels of rows and of their float16, on an OpenCL
device.
"""

from __future__ import annotations

import numpy as np
import pytest
from gpu_cases import compiled, needs_opencl
from op_cases import gpu_kernel, nmse
from test_ops_linear import packed
from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.kernel import kernel, store, workgroups
from minicpm_mlc.ops.gpu.speed_limits import CHAINS, multiply_add_peak, read_peak
from minicpm_mlc.ops.likeliest import Likeliest
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.swiglu import Swiglu, swiglu_definition

pytestmark = needs_opencl


def test_swiglu_of_large_gates():
    gate_up = np.array([[-200, 200, -1e4, 88] + [1] * 4], np.float32)
    out = np.full((1, 4), np.nan, np.float32)
    compiled(gpu_kernel(Swiglu(4)))(gate_up, out)
    assert nmse(out, swiglu_definition(gate_up)) < 1e-12


def test_the_likeliest_token_of_rows_that_hold_no_numbers():
    logits = np.random.default_rng(0).standard_normal((4, 2064)).astype(np.float32)
    logits[0, [7, 1500]], logits[1, 2000], logits[2] = np.nan, np.inf, -np.inf
    ids, values = np.zeros(4, np.int32), np.zeros(4, np.float32)
    compiled(gpu_kernel(Likeliest(2050)))(logits, ids, values)
    assert ids.tolist() == [7, 2000, 0, logits[3, :2050].argmax()]
    np.testing.assert_array_equal(values, logits[np.arange(4), ids])


def test_a_kernel_multiplies_and_adds_towards_one():
    out = np.zeros((2, 128), np.float32)
    compiled(multiply_add_peak())(out)
    np.testing.assert_allclose(out, CHAINS)


def test_the_bandwidth_kernel_reads_every_word():
    x = np.random.default_rng(0).integers(-1000, 1000, 512 * 3 * 5).astype(np.int32)
    out = np.zeros((3, 128), np.int32)
    compiled(read_peak())(x, out)
    assert out.sum() == x.sum()


def test_linear_padding_rows_are_zero_weights():
    stored, _, fmt = packed("w4", 33, 128, seed=0)
    out = np.full((20, 48), np.nan, np.float32)
    compiled(gpu_kernel(Linear(33, 128, fmt)))(np.ones((20, 128), np.float32), *stored, out)
    assert not out[:, 33:].any()


def test_linear_refuses_shapes_that_do_not_fit():
    with pytest.raises(CompileError, match="multiple of 32"):
        gpu_kernel(Linear(16, 40, packed("f32", 16, 32, 0)[2]))
    with pytest.raises(CompileError, match="multiple of 16"):
        gpu_kernel(Linear(33, 128, packed("f32", 33, 128, 0)[2], residual=True))


def test_every_float16_is_read_exactly_and_written_to_the_nearest():
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    one = {"halves": ("float16", 65536), "floats": ("float32", 65536), "back": ("float16", 65536)}

    def emit(_, halves, floats, back):
        with workgroups(512) as (group, thread):
            at = T.Bind(group * 128 + thread)
            T.buffer_store(floats, halves[at], [at])
            store(back, floats[at], [at])

    floats, back = np.zeros(65536, np.float32), np.zeros(65536, np.float16)
    compiled(kernel("copy", one, emit))(halves, floats, back)
    np.testing.assert_array_equal(floats, halves.astype(np.float32))
    np.testing.assert_array_equal(back, halves)


def test_floats_are_rounded_to_the_nearest_float16_ties_to_even():
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = (halves[:-1] + halves[1:]) / 2
    floats = np.concatenate(
        [halfway, np.nextafter(halfway, 0), -np.nextafter(halfway, np.float32(np.inf))]
    )
    floats = np.concatenate(
        [floats, np.float32([65519, 65520, -65536, 3e38, -np.inf, np.nan, 1e-8, -1e-30])]
    )
    floats = np.pad(floats, (0, -len(floats) % 128))
    one = {"floats": ("float32", len(floats)), "halves": ("float16", len(floats))}

    def emit(_, floats, halves):
        with workgroups(floats.shape[0] // 128) as (group, thread):
            at = T.Bind(group * 128 + thread)
            store(halves, floats[at], [at])

    out = np.zeros(len(floats), np.float16)
    compiled(kernel("round", one, emit))(floats, out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, floats.astype(np.float16))


def test_constants_keep_every_bit():
    values = [1 / 3, 2.0**-24, -126 * np.log(2), 1e-6, 1.4 / np.sqrt(32), 1e30]

    def emit(_, out):
        with workgroups(1) as (_, thread):
            with T.If(thread.equal(0)), T.Then():
                for i, value in enumerate(values):
                    T.buffer_store(out, constant(value), [i])

    out = np.zeros(len(values), np.float32)
    compiled(kernel("constants", {"out": ("float32", len(values))}, emit))(out)
    np.testing.assert_array_equal(out, np.float32(values))
