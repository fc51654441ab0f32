"""Libraries for Android: a shared one by its format's rules, and the objects that apps link, run
here and under qemu.
"""

from __future__ import annotations

import ctypes
import json
import platform
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import tvm_ffi
from elf import AARCH64, read_object, read_shared_object
from gpu_cases import needs_opencl
from test_linux_arm64 import needs_arm64, run_arm64

import minicpm_mlc.runtime_py.library as runtime
from minicpm_mlc import Engine
from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile import compile_model
from minicpm_mlc.ops.gpu.kernel import THREADS
from minicpm_mlc.targets.link import PLATFORMS, link, zig

PREFIX = "MiniCPM4_1_demo_w4a_"
KERNEL = """
#include <stdint.h>
typedef struct { int32_t type, size; int64_t value; } Any;
void TVMFFIEnvModRegisterSystemLibSymbol(const char*, void*);
int64_t launched[7];
static int kernel(void* self, const Any* arguments, int32_t count, Any* result) {
  launched[0] = count;
  for (int i = 0; i < 6; ++i) launched[1 + i] = arguments[i].value;
  return 0;
}
__attribute__((constructor)) static void add(void) {
  TVMFFIEnvModRegisterSystemLibSymbol(NAME, kernel);
}
"""  # stands in for the GPU's: it notes what it is launched with
PROGRAM = """
import ctypes, json, sys
import numpy as np
from minicpm_mlc.runtime_py import memory
from minicpm_mlc.runtime_py.library import load_runtime, tvm_ffi
path, prefix, hidden = sys.argv[1], sys.argv[2], int(sys.argv[3])
load_runtime()
app = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
processor, kernels = tvm_ffi.get_global_func("device_api.cpu"), tvm_ffi.system_lib("kernels_")
tvm_ffi.register_global_func("device_api.opencl", lambda: processor())
tvm_ffi.register_global_func("ffi.Module.load_from_bytes.opencl", lambda _: kernels)
norm = tvm_ffi.system_lib(prefix).get_function(prefix + "rms_norm", query_imports=True)
place = memory.DeviceMemory(memory.DEVICE_RUNTIMES["opencl"].dlpack)
shapes = (5, hidden), (hidden,), (5, hidden)
x, weight, out = (place.tensor(np.ones(shape, np.float32)) for shape in shapes)
norm(x, weight, out)
launched = list((ctypes.c_int64 * 7).in_dll(app, "launched"))
try: norm(x, x, out)
except ValueError as error:
    pointers = [tensor.data_ptr() for tensor in (x, weight, out)]
    print(json.dumps([launched, pointers, str(error)]))
"""
DEMO = Path(__file__).parents[1] / "examples" / "demo_model" / "MiniCPM4.1-demo"


# the libraries have the same form, whichever kernels are in them
@pytest.fixture(
    scope="module", params=["opencl", pytest.param("vulkan", marks=pytest.mark.campaign)]
)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("android") / request.param
    compile_model(DEMO, path, device="android", gpu=request.param, attention="dense")
    return path


def test_the_shared_library_names_what_it_needs_and_fits_large_pages(bundle: Path):
    library = read_shared_object(bundle / "model.so")
    assert library.machine == AARCH64 and library.page >= 16384
    assert "libtvm_ffi.so" in library.needed and set(library.needed) <= {"libtvm_ffi.so", "libc.so"}
    assert library.undefined <= {"TVMFFIErrorSetRaisedFromCStrParts", "memcpy", "memset", "memmove"}
    assert "__tvm_ffi__library_bin" in library.exported


def test_the_objects_register_themselves_under_their_prefix(bundle: Path):
    with tarfile.open(bundle / "model.tar") as tar:
        objects = {m.name: read_object(tar.extractfile(m).read()) for m in tar.getmembers()}  # type: ignore[union-attr]
    assert sorted(objects) == ["MiniCPM4_1_demo_w4a_devc.o", "lib0.o"]
    assert all(o.machine == AARCH64 for o in objects.values())
    defined = set[str]().union(*(o.defined for o in objects.values()))
    outside = set[str]().union(*(o.undefined for o in objects.values())) - defined
    assert "MiniCPM4_1_demo_w4a___tvm_ffi__library_bin" in defined
    assert all("MiniCPM4_1_demo_w4a_" in name for name in defined if "tvm_ffi" in name)
    assert "TVMFFIEnvModRegisterSystemLibSymbol" in outside
    assert {name for name in outside if not name.startswith("TVM")} <= {
        "memcpy",
        "memset",
        "memmove",
    }


def test_an_android_bundle_is_refused_here(bundle: Path):
    with pytest.raises(BundleError, match="compiled for aarch64 android, and this machine is"):
        Engine(bundle)


@needs_opencl
def test_an_app_that_links_the_objects_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same objects for this machine: they lie in the process, and TVM finds them by their
    prefix.
    """
    here = PLATFORMS[platform.machine()]
    monkeypatch.setitem(PLATFORMS, platform.machine(), replace(here, libraries=("model.tar",)))
    compile_model(DEMO, tmp_path / "bundle", device="opencl", attention="dense")
    with tarfile.open(tmp_path / "bundle" / "model.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    link(here, str(tmp_path / "app.so"), [str(path) for path in sorted(tmp_path.glob("*.o"))])
    ctypes.CDLL(str(tmp_path / "app.so"), mode=ctypes.RTLD_GLOBAL)
    monkeypatch.setattr(
        runtime.tvm_ffi, "load_module", lambda *_, **__: tvm_ffi.system_lib("MiniCPM4_1_demo_w4a_")
    )
    with Engine(tmp_path / "bundle", context=512) as engine:
        answer = engine.chat(
            [{"role": "user", "content": "What is 4827 + 356?"}], max_tokens=128, temperature=0
        )
    assert "5183" in answer


@needs_arm64
@pytest.mark.parametrize("bundle", ["opencl"], indirect=True)
def test_the_objects_host_code_checks_arguments_and_launches_kernels_on_arm64(
    bundle: Path, tmp_path: Path
):
    """Linked for Linux instead of Android, under qemu; only the kernel is another one."""
    with tarfile.open(bundle / "model.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "kernel.c").write_text(KERNEL)
    flags = [
        "-target",
        PLATFORMS["aarch64"].zig,
        "-shared",
        "-nostdlib",
        "-fPIC",
        "-Wl,-z,undefs",
        "-fno-sanitize=all",
    ]
    name = f'-DNAME="__tvm_ffi_kernels_{PREFIX}rms_norm_kernel"'
    app, objects = str(tmp_path / "app.so"), [str(path) for path in sorted(tmp_path.glob("*.o"))]
    zig("cc", *flags, name, "-o", app, str(tmp_path / "kernel.c"), *objects)
    done = run_arm64("-c", PROGRAM, app, PREFIX, str(Manifest.load(bundle).model["hidden_size"]))
    assert done.returncode == 0, done.stderr
    launched, pointers, refusal = json.loads(done.stdout)
    assert (launched[0], sorted(launched[1:4])) == (6, sorted(pointers))
    assert launched[4:] == [5, 5, THREADS]  # rows, workgroups, threads
    assert "Mismatched .ndim on argument #1" in refusal
