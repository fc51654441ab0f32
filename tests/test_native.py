"""minicpm-mlc-native and its OpenCL runtime: copies, threads, and what it says when something is wrong."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from gpu_cases import DEVICE, compiled, needs_opencl

import minicpm_mlc.runtime_py.memory as memory
from minicpm_mlc.errors import BundleError
from minicpm_mlc.ops.gpu.rows import rms_norm
from minicpm_mlc.ops.norm import rms_norm_definition


@needs_opencl
def test_the_device_tells_what_it_is():
    assert DEVICE.exist and DEVICE.device_name and DEVICE.max_threads_per_block >= 128
    assert DEVICE.warp_size == 1 and DEVICE.max_shared_memory_per_block >= 16384


@needs_opencl
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64"])
def test_copies_keep_every_byte(dtype: str):
    array = np.random.default_rng(0).integers(-100, 100, (3, 5, 7)).astype(dtype)
    there = tvm.runtime.tensor(array, DEVICE)
    twin = tvm.runtime.empty(array.shape, dtype, DEVICE)
    there.copyto(twin)
    np.testing.assert_array_equal(twin.numpy(), array)
    assert tvm.runtime.empty((0, 4), dtype, DEVICE).numpy().shape == (0, 4)


@needs_opencl
def test_memory_for_the_engine_is_the_devices():
    place = memory.open_memory("opencl")
    array = np.arange(60, dtype=np.float32).reshape(5, 12)
    np.testing.assert_array_equal(place.array(place.tensor(array.T)), array.T)
    assert place.zeros((2, 3), np.dtype("float16")).shape == (2, 3) and place.name == DEVICE.device_name


@needs_opencl
def test_threads_share_a_kernel():
    call = compiled(rms_norm(256, 1e-6))
    inputs = [np.random.default_rng(i).standard_normal((i + 1, 256), np.float32) for i in range(32)]

    def run(x: np.ndarray) -> np.ndarray:
        out = np.full_like(x, np.nan)
        call(x, np.ones(256, np.float32), out)
        return out

    with ThreadPoolExecutor(4) as pool:
        for x, out in zip(inputs, pool.map(run, inputs), strict=True):
            np.testing.assert_allclose(out, rms_norm_definition(x, np.ones(256), 1e-6), rtol=1e-5)


@needs_opencl
def test_too_large_a_buffer_is_an_error_that_names_the_remedy():
    with pytest.raises(RuntimeError, match=r"allocating a buffer failed .* use a smaller --context"):
        tvm.runtime.empty((1 << 46,), "float32", DEVICE)
    assert (tvm.runtime.tensor(np.ones(3, np.float32), DEVICE).numpy() == 1).all()  # and the device works on


@needs_opencl
def test_a_device_that_is_not_there_is_named():
    assert not tvm.device("opencl", 99).exist
    with pytest.raises(RuntimeError, match="no OpenCL device 99, found"):
        tvm.runtime.empty((1,), "float32", tvm.device("opencl", 99))


@needs_opencl
@pytest.mark.parametrize("data", [b"", b"\2" + bytes(7) + b"cl", b"\xff" * 64])
def test_a_damaged_library_part_is_refused(data: bytes):
    with pytest.raises(RuntimeError, match="OpenCL part is cut off; compile the bundle again"):
        tvm.get_global_func("ffi.Module.load_from_bytes.opencl")(data)


@needs_opencl
def test_kernels_that_the_driver_refuses_come_with_its_log():
    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    signature = text(b"f") + text(b"f") + bytes(8) + (1).to_bytes(8, "little") + text(b"blockIdx.x") + bytes(8)
    data = text(b"cl") + (1).to_bytes(8, "little") + signature + text(b"__kernel void f() { no_such_thing(); }")
    module = tvm.get_global_func("ffi.Module.load_from_bytes.opencl")(data)
    with pytest.raises(RuntimeError, match=r"driver can't build the kernels.*no_such_thing"):
        module["f"](1)


def test_without_its_runtime_a_device_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.tvm_ffi, "get_global_func", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "minicpm_mlc_native", None)
    with pytest.raises(BundleError, match=r"the runtime for opencl is missing .* make native"):
        memory.open_memory("opencl")


def test_a_runtime_that_was_not_built_is_named_with_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.tvm_ffi, "get_global_func", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "minicpm_mlc_native", SimpleNamespace(load=lambda: None))
    with pytest.raises(BundleError, match=r"built without vulkan, whose headers were missing; install .* libvulkan-dev"):
        memory.open_memory("vulkan")


@needs_opencl
def test_beside_another_tvm_the_library_is_not_loaded(monkeypatch: pytest.MonkeyPatch):
    import minicpm_mlc_native

    monkeypatch.setattr(minicpm_mlc_native, "version", lambda _: "0.28.0")
    with pytest.raises(ImportError, match=r"for apache-tvm 0\.27\.\*, found 0\.28\.0; build it again"):
        minicpm_mlc_native.load()
