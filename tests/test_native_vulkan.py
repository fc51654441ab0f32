"""The Vulkan runtime of minicpm-mlc-native: memory, copies, batches, threads, and what it says when
something is wrong.

Its kernels are made by our SPIR-V generator. Vulkan's validation layer watches where it is
installed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from conftest import VALIDATED
from driver_cases import failing, in_new_process, needs_cc
from gpu_cases import device_named
from op_cases import cpu_kernel
from tvm.script import tirx as T

import minicpm_mlc.runtime_py.memory as memory
from minicpm_mlc.ops.gpu.kernel import kernel, workgroups
from minicpm_mlc.ops.swiglu import Swiglu
from minicpm_mlc.targets import get_target
from minicpm_mlc.targets.vulkan.artifact import CONSTANT

DEVICE: Any = device_named("vulkan")
pytestmark = [
    pytest.mark.skipif(DEVICE is None, reason="no Vulkan device with its runtime: make devices"),
    pytest.mark.usefixtures("vulkan_silent"),
]
VULKAN = 7  # TVM's number of the device type
THREADS, SCALARS = 64, 17
STAGED = "MINICPM_VULKAN_STAGING"


def add() -> Any:
    """PrimFunc (x f32[n], y f32[n]): y += x."""

    def emit(dims: Any, x: Any, y: Any) -> None:
        with workgroups((dims.n + THREADS - 1) // THREADS, THREADS) as (group, thread):
            i = T.Bind(group * THREADS + thread)
            with T.If(i < dims.n), T.Then():
                T.buffer_store(y, y[i] + x[i], [i])

    return kernel("add", {"x": ("float32", "n"), "y": ("float32", "n")}, emit)


def extents() -> Any:
    """PrimFunc (17 tensors i32[n_i], out i32[17]): their lengths, which are more scalars than push
    constants hold.
    """
    arguments: dict[str, Any] = {f"x{i}": ("int32", f"n{i}") for i in range(SCALARS)}

    def emit(dims: Any, *buffers: Any) -> None:
        with workgroups(1, 1):
            for i, buffer in enumerate(buffers[:-1]):
                T.buffer_store(
                    buffers[-1], T.Cast("int32", getattr(dims, f"n{i}")) + buffer[0], [i]
                )

    return kernel("extents", arguments | {"out": ("int32", SCALARS)}, emit)


class Compiled:
    """A library of functions by name, its file, and the bytes of its Vulkan part."""

    def __init__(self, path: Path, **functions: Any) -> None:
        target = get_target("vulkan")
        module = tvm.IRModule(
            {
                name: function.with_attr("global_symbol", name)
                for name, function in functions.items()
            }
        )
        built = tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline())
        target.export(built, str(path))
        self.path, self.library = path, tvm.runtime.load_module(str(path))
        self.bytes = built.mod.imports[0]["get_const_var_tensor"]()[CONSTANT].numpy().tobytes()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("kernels") / "kernels.so", add=add(), extents=extents())


def there(array: np.ndarray) -> tvm.runtime.Tensor:
    return tvm.runtime.tensor(array, DEVICE)


def counters() -> dict[str, int]:
    return {
        str(name): value
        for name, value in tvm.get_global_func("minicpm.vulkan.counters")(0).items()
    }


def loaded(content: bytes) -> Any:
    return tvm.get_global_func("ffi.Module.load_from_bytes.vulkan")(content)


def launch(add: Any, x: tvm.runtime.Tensor, n: int, *grid: int) -> None:
    """The kernel itself, without the library's code around it: x += x."""
    tvm.get_global_func("__tvm_set_device")(VULKAN, 0)
    pointer = ctypes.c_void_p(x.data_ptr())
    add(pointer, pointer, n, *grid)


def test_the_device_tells_what_it_is():
    assert DEVICE.exist and DEVICE.device_name and DEVICE.max_threads_per_block >= 128
    assert DEVICE.warp_size == 1 and DEVICE.max_shared_memory_per_block >= 16384
    assert DEVICE.total_global_memory >= 1 << 28


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64"])
def test_copies_keep_every_byte(dtype: str):
    array = np.random.default_rng(0).integers(-100, 100, (3, 5, 7)).astype(dtype)
    tensor, twin = there(array), tvm.runtime.empty(array.shape, dtype, DEVICE)
    tensor.copyto(twin)
    np.testing.assert_array_equal(twin.numpy(), array)
    assert tvm.runtime.empty((0, 4), dtype, DEVICE).numpy().shape == (0, 4)


def test_memory_for_the_engine_is_the_devices():
    place = memory.open_memory("vulkan")
    array = np.arange(60, dtype=np.float32).reshape(5, 12)
    np.testing.assert_array_equal(place.array(place.tensor(array.T)), array.T)
    assert place.name == DEVICE.device_name


def test_tensors_share_blocks_and_their_memory_is_used_again():
    before = counters()
    tensors = [there(np.full(1000, i, np.int32)) for i in range(100)]
    full = counters()
    assert full["blocks"] <= before["blocks"] + 1 and full["used"] - before["used"] == 100 * 4096
    del tensors[::2]
    assert (tensors[0].numpy() == 1).all()  # and now nothing uses the others any more
    between = [there(np.full(1000, i, np.int32)) for i in range(50)]
    assert counters()["reserved"] == full["reserved"] and counters()["used"] == full["used"]
    for i, tensor in enumerate(tensors):
        assert (tensor.numpy() == 2 * i + 1).all()
    for i, tensor in enumerate(between):
        assert (tensor.numpy() == i).all()
    del tensor, tensors, between
    there(np.zeros(1)).numpy()
    assert counters()["used"] == before["used"]


def test_memory_taken_and_freed_in_any_order_is_never_shared():
    rng, living = np.random.default_rng(2), {}
    for i in range(400):
        if living and rng.random() < 0.5:
            tensor = living.pop(int(rng.choice(list(living))))
            assert len(set(tensor.numpy())) == 1
        living[i] = there(np.full(int(rng.integers(1, 5000)), i, np.int32))
    for i, tensor in living.items():
        assert (tensor.numpy() == i).all()


def test_a_large_tensor_gives_its_memory_back():
    before = counters()
    tensor = tvm.runtime.empty((100 << 18,), "float32", DEVICE)
    assert counters()["reserved"] - before["reserved"] == 100 << 20
    del tensor
    assert counters()["reserved"] == before["reserved"]


def test_large_copies_go_through_in_parts():
    array = np.random.default_rng(1).integers(0, 1 << 31, (13 << 18) + 7, np.int32)
    np.testing.assert_array_equal(there(array).numpy(), array)


def test_launches_and_copies_to_the_device_are_one_submission(compiled: Compiled):
    y, before = there(np.zeros(1000, np.float32)), counters()
    for i in range(20):
        compiled.library["add"](there(np.full(1000, i, np.float32)), y)
    DEVICE.sync()
    after = counters()
    assert (
        after["launches"] - before["launches"] == 20
        and after["submissions"] - before["submissions"] == 1
    )
    assert (y.numpy() == sum(range(20))).all()


def test_more_launches_than_a_batch_holds_stay_in_order(compiled: Compiled):
    x, y = there(np.ones(3, np.float32)), there(np.zeros(3, np.float32))
    for _ in range(5000):
        compiled.library["add"](x, y)
    assert (y.numpy() == 5000).all()


def test_what_is_written_while_kernels_run_is_not_seen_by_them(compiled: Compiled):
    x, y = there(np.ones(1000, np.float32)), there(np.zeros(1000, np.float32))
    compiled.library["add"](x, y)
    x.copyfrom(np.full(1000, 5, np.float32))
    compiled.library["add"](x, y)
    assert (y.numpy() == 6).all()


def test_memory_freed_while_kernels_use_it_is_not_given_away(compiled: Compiled):
    y = there(np.zeros(1000, np.float32))
    for i in range(30):
        x = there(np.full(1000, i, np.float32))
        compiled.library["add"](x, y)
        del x
    assert (y.numpy() == sum(range(30))).all()


def test_more_workgroups_than_the_device_has_in_a_row(compiled: Compiled):
    n = 70_000 * THREADS + 1
    x, y = there(np.ones(n, np.float32)), there(np.arange(n, dtype=np.float32))
    compiled.library["add"](x, y)
    np.testing.assert_array_equal(y.numpy(), np.arange(1, n + 1, dtype=np.float32))


def test_many_scalars_come_in_a_uniform_buffer(compiled: Compiled):
    inputs = [there(np.full(i + 1, 100, np.int32)) for i in range(SCALARS)]
    out = there(np.zeros(SCALARS, np.int32))
    compiled.library["extents"](*inputs, out)
    np.testing.assert_array_equal(out.numpy(), 101 + np.arange(SCALARS))


def test_threads_share_kernels_and_memory(compiled: Compiled):
    def run(i: int) -> float:
        x, y = there(np.full(i + 1, i, np.float32)), there(np.zeros(i + 1, np.float32))
        for _ in range(10):
            compiled.library["add"](x, y)
        return y.numpy().sum()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(64))) == [10.0 * i * (i + 1) for i in range(64)]


def test_kernels_are_timed(compiled: Compiled):
    profile = tvm.get_global_func("minicpm.vulkan.profile")
    x, y = there(np.ones(1 << 20, np.float32)), there(np.zeros(1 << 20, np.float32))
    profile(0, True)
    compiled.library["add"](x, y)
    compiled.library["add"](x, y)
    times = profile(0, False)
    assert [str(kernel) for kernel, _ in times] == ["add_kernel"] * 2
    assert all(nanoseconds > 1000 for _, nanoseconds in times)
    compiled.library["add"](x, y)
    assert not profile(0, False)


def test_a_module_comes_back_from_its_bytes(compiled: Compiled, tmp_path: Path):
    """And goes into another library with them."""
    module = loaded(compiled.bytes)
    assert module.kind == "vulkan"
    target = get_target("cpu")
    host = tvm.compile(
        tvm.IRModule({"main": cpu_kernel(Swiglu(16)).with_attr("global_symbol", "main")}),
        target.tvm_target(),
    )
    host.mod.import_module(module)
    host.export_library(str(tmp_path / "again.so"), fcompile=target.link)
    again = tvm.runtime.load_module(str(tmp_path / "again.so")).imports[0]
    x = there(np.ones(10, np.float32))
    launch(again["add_kernel"], x, 10, 1, THREADS)
    assert (x.numpy() == 2).all()


def test_a_damaged_library_part_is_refused(compiled: Compiled):
    for length in [*range(0, 200), len(compiled.bytes) // 2, len(compiled.bytes) - 1]:
        with pytest.raises(RuntimeError, match="Vulkan part is cut off; compile the bundle again"):
            loaded(compiled.bytes[:length])
    with pytest.raises(RuntimeError, match="Vulkan part is cut off"):
        loaded(b"\xff" * 64)
    magic = (0x07230203).to_bytes(4, "little")
    broken = loaded(compiled.bytes.replace(magic, bytes(4)))
    with pytest.raises(
        RuntimeError, match="kernel add_kernel is no SPIR-V; compile the bundle again"
    ):
        launch(broken["add_kernel"], there(np.ones(1, np.float32)), 1, 1, THREADS)


def test_launches_beyond_the_devices_limits_are_refused(compiled: Compiled):
    function, x = loaded(compiled.bytes)["add_kernel"], there(np.ones(1, np.float32))
    with pytest.raises(RuntimeError, match="has workgroups of 4096 threads"):
        launch(function, x, 1, 1, 4096)
    with pytest.raises(RuntimeError, match=r"kernel add_kernel needs \d+ workgroups"):
        launch(function, x, 1, 1 << 40, THREADS)
    launch(function, x, 1, 0, THREADS)  # nothing to do


def test_too_large_a_buffer_is_an_error_that_names_the_remedy():
    with pytest.raises(
        RuntimeError, match=r"allocating a buffer of \d+ MiB failed.* use a smaller --context"
    ):
        tvm.runtime.empty((1 << 46,), "float32", DEVICE)
    assert (there(np.ones(3, np.float32)).numpy() == 1).all()  # and the device works on


def test_a_device_that_is_not_there_is_named():
    nowhere: Any = tvm.device("vulkan", 99)
    assert not nowhere.exist
    with pytest.raises(RuntimeError, match="no Vulkan device 99, found"):
        tvm.runtime.empty((1,), "float32", nowhere)


def test_without_a_driver_there_is_no_device():
    code = """
try: open_memory("vulkan")
except Exception as e: print(e)
"""
    printed = in_new_process(code, MINICPM_VULKAN_LIBRARY="/nonexistent")
    assert printed.startswith("no vulkan device was found; install its driver")


def test_without_the_loader_a_driver_is_asked_itself():
    name = "libvulkan_lvp.so"
    try:
        ctypes.CDLL(name)
    except OSError:
        pytest.skip(f"no {name}")
    code = (
        "place = open_memory('vulkan')\nprint(place.array(place.tensor(np.arange(3))), place.name)"
    )
    assert in_new_process(code, MINICPM_VULKAN_LIBRARY=name).startswith("[0 1 2] llvmpipe")


@needs_cc
@pytest.mark.parametrize(
    ("function", "result", "error"),
    [
        (
            "vkQueueSubmit",
            "VK_ERROR_DEVICE_LOST",
            "the device was lost, and what it held; start the program again",
        ),
        ("vkWaitForFences", "VK_ERROR_DEVICE_LOST", "the device was lost"),
        ("vkAllocateMemory", "VK_ERROR_OUT_OF_DEVICE_MEMORY", "out of memory, 0 MiB of"),
    ],
)
def test_a_driver_that_fails_is_an_error_and_no_crash(
    compiled: Compiled, tmp_path: Path, function: str, result: str, error: str
):
    code = f"""
from minicpm_mlc.base.errors import DeviceError
place, add = open_memory("vulkan"), tvm_ffi.load_module({str(compiled.path)!r})["add"]
for _ in range(2):
    try:
        y = place.tensor(np.zeros(3, "f"))
        add(y, y)
        place.array(y)
    except DeviceError as e: print(e)
"""
    printed = in_new_process(code, **failing("vulkan", tmp_path, function, result))
    assert printed.count(error) == 2


def test_what_the_driver_made_of_kernels_is_kept_and_may_be_damaged(
    compiled: Compiled, tmp_path: Path
):
    code = f"""
place, add = open_memory("vulkan"), tvm_ffi.load_module({str(compiled.path)!r})["add"]
y = place.tensor(np.zeros(3, "f"))
for i in range(3):
    add(y, y)
    assert not place.array(y).any()
"""
    for _ in range(2):
        in_new_process(code, XDG_CACHE_HOME=str(tmp_path))
        (kept,) = (tmp_path / "minicpm-mlc").iterdir()
        whole = kept.read_bytes()
        assert kept.name.startswith("vulkan-") and len(whole) > 8
        kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))


def test_a_forked_process_is_told_what_to_do():
    code = """
import os
from minicpm_mlc.base.errors import DeviceError
place = open_memory("vulkan")
x = place.tensor(np.ones(3))
if os.fork() == 0:
    try: place.array(x)
    except DeviceError as e: print(e, flush=True)
    os._exit(0)
os.wait()
assert place.array(x).sum() == 3
"""
    assert 'start it with multiprocessing\'s "spawn"' in in_new_process(code)


@pytest.mark.skipif(not VALIDATED, reason="no validation layer: make devices")
def test_the_validation_layer_is_watching(compiled: Compiled, capfd: pytest.CaptureFixture[str]):
    """It complains of a kernel whose scalars are said to be elsewhere."""
    flag = compiled.bytes.index((0x07230203).to_bytes(4, "little")) - 12
    assert compiled.bytes[flag : flag + 4] == bytes(4)
    wrong = compiled.bytes[:flag] + b"\1" + compiled.bytes[flag + 1 :]
    x = there(np.ones(1, np.float32))
    launch(loaded(wrong)["add_kernel"], x, 1, 1, THREADS)
    DEVICE.sync()
    assert "Validation Error" in "".join(capfd.readouterr())


@pytest.mark.skipif(STAGED in os.environ, reason="already so")
def test_where_the_host_does_not_share_the_devices_memory_all_is_the_same():
    command = [
        sys.executable,
        "-m",
        "pytest",
        __file__,
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not process and not driver",
    ]
    done = subprocess.run(
        command, env=os.environ | {STAGED: "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
