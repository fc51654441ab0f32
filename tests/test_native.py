"""minicpm-mlc-native and its OpenCL runtime: copies, threads, and what it says when something is
wrong.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from driver_cases import built, in_new_process, lost, needs_cc
from gpu_cases import DEVICE, compiled, needs_opencl
from op_cases import gpu_kernel

import minicpm_mlc.runtime_py.memory as memory
from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.ops.rms_norm import RmsNorm, rms_norm_definition
from minicpm_mlc.targets import get_target


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
    assert (
        place.zeros((2, 3), np.dtype("float16")).shape == (2, 3)
        and place.name == DEVICE.device_name
    )


@needs_opencl
def test_threads_share_a_kernel():
    call = compiled(gpu_kernel(RmsNorm(256, 1e-6)))
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
    with pytest.raises(
        RuntimeError, match=r"allocating a buffer failed .* use a smaller --context"
    ):
        tvm.runtime.empty((1 << 46,), "float32", DEVICE)
    assert (
        tvm.runtime.tensor(np.ones(3, np.float32), DEVICE).numpy() == 1
    ).all()  # and the device works on


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

    signature = (
        text(b"f")
        + text(b"f")
        + bytes(8)
        + (1).to_bytes(8, "little")
        + text(b"blockIdx.x")
        + bytes(8)
    )
    data = (
        text(b"cl")
        + (1).to_bytes(8, "little")
        + signature
        + text(b"__kernel void f() { no_such_thing(); }")
    )
    module = tvm.get_global_func("ffi.Module.load_from_bytes.opencl")(data)
    with pytest.raises(RuntimeError, match=r"driver can't build the kernels.*no_such_thing"):
        module["f"](1)


NO_CONTEXT = (
    "void* clCreateContext(void* a, int b, void* c, void* d, void* e, int* f) { *f = "
    "-6; return 0; }"
)


@needs_opencl
@needs_cc
def test_a_lost_device_and_one_that_does_not_open_are_errors_and_no_crash(tmp_path: Path):
    code = """
from minicpm_mlc.base.errors import DeviceError
place = open_memory("opencl")
for _ in range(2):
    try: place.array(place.tensor(np.zeros(3)))
    except DeviceError as e: print(place.name, e)
"""
    printed = in_new_process(code, **lost("opencl", tmp_path))
    assert printed.count("the device was lost, and what it held; start the program again") == 2
    printed = in_new_process(code, **built("opencl", tmp_path, NO_CONTEXT))
    assert printed.count("creating a context failed with -6: out of memory") == 2


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    """A library with one kernel, RMSNorm of 64 numbers."""
    target = get_target("opencl")
    module = tvm.IRModule(
        {"main": gpu_kernel(RmsNorm(64, 1e-6)).with_attr("global_symbol", "main")}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "norm.so"
        target.export(
            tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline()), str(path)
        )
        yield path


@needs_opencl
@needs_cc
def test_what_the_driver_made_of_kernels_is_kept_and_may_be_damaged(library: Path, tmp_path: Path):
    code = f"""
place, norm = open_memory("opencl"), tvm_ffi.load_module({str(library)!r})["main"]
x, out = place.tensor(np.full((1, 64), 2, "f")), place.zeros((1, 64), np.dtype("f"))
norm(x, place.tensor(np.ones(64, "f")), out)
print(np.abs(place.array(out) - 1).max() < 1e-6)
"""
    no_compiler = (
        "int clCreateProgramWithSource(void* a, int b, void* c, void* d, int* status) "
        "{ *status = -3; return 0; }"
    )
    no_source = built("opencl", tmp_path, no_compiler)
    for damaged in (True, False):
        assert in_new_process(code, XDG_CACHE_HOME=str(tmp_path)) == "True\n"
        (kept,) = (tmp_path / "minicpm-mlc").glob("opencl-*")
        whole = kept.read_bytes()
        kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]) if damaged else whole)
    assert (
        in_new_process(code, XDG_CACHE_HOME=str(tmp_path), **no_source) == "True\n"
    )  # from what was kept alone


def test_without_its_runtime_a_device_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.tvm_ffi, "get_global_func", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "minicpm_mlc_native", None)
    with pytest.raises(BundleError, match=r"the runtime for opencl is missing .* make native"):
        memory.open_memory("opencl")


def test_a_runtime_that_was_not_built_is_named_with_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.tvm_ffi, "get_global_func", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "minicpm_mlc_native", SimpleNamespace(load=lambda: None))
    with pytest.raises(
        BundleError,
        match=r"built without vulkan, whose headers were missing; install .* libvulkan-dev",
    ):
        memory.open_memory("vulkan")


@needs_opencl
def test_a_runtime_that_tvm_has_itself_stays():
    """The library is loaded beside it, and registers nothing."""
    code = """
import minicpm_mlc_native
kinds, devices = ("device_api", "ffi.Module.load_from_bytes"), ("opencl", "vulkan")
names = [f"{kind}.{device}" for kind in kinds for device in devices]
for name in names: tvm_ffi.register_global_func(name, lambda *_: 7)
minicpm_mlc_native.load()
own = tvm_ffi.get_global_func("minicpm.vulkan.counters", True)
print([tvm_ffi.get_global_func(name)() for name in names], own)
"""
    assert in_new_process(code) == "[7, 7, 7, 7] None\n"


@needs_opencl
def test_beside_another_tvm_the_library_is_not_loaded(monkeypatch: pytest.MonkeyPatch):
    import minicpm_mlc_native

    monkeypatch.setattr(minicpm_mlc_native, "version", lambda _: "0.28.0")
    with pytest.raises(
        ImportError, match=r"for apache-tvm 0\.27\.\*, found 0\.28\.0; build it again"
    ):
        minicpm_mlc_native.load()
