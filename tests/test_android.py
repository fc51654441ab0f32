"""Libraries for Android: a shared one by its format's rules, and the objects that apps link, linked and run here."""

from __future__ import annotations

import ctypes
import platform
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import tvm_ffi
from elf import AARCH64, read_object, read_shared_object
from gpu_cases import needs_opencl

import minicpm_mlc.runtime_py.library as runtime
from minicpm_mlc import Engine
from minicpm_mlc.compile import compile_model
from minicpm_mlc.errors import BundleError
from minicpm_mlc.targets.link import PLATFORMS, link

DEMO = Path(__file__).parents[1] / "examples" / "demo_model" / "MiniCPM4.1-demo"


@pytest.fixture(scope="module", params=["opencl", "vulkan"])
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
    assert sorted(objects) == ["MiniCPM4_1_demo_w4_devc.o", "lib0.o"]
    assert all(o.machine == AARCH64 for o in objects.values())
    defined = set[str]().union(*(o.defined for o in objects.values()))
    outside = set[str]().union(*(o.undefined for o in objects.values())) - defined
    assert "MiniCPM4_1_demo_w4___tvm_ffi__library_bin" in defined
    assert all("MiniCPM4_1_demo_w4_" in name for name in defined if "tvm_ffi" in name)
    assert "TVMFFIEnvModRegisterSystemLibSymbol" in outside
    assert {name for name in outside if not name.startswith("TVM")} <= {"memcpy", "memset", "memmove"}


def test_an_android_bundle_is_refused_here(bundle: Path):
    with pytest.raises(BundleError, match="compiled for aarch64 android, and this machine is"):
        Engine(bundle)


@needs_opencl
def test_an_app_that_links_the_objects_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same objects for this machine: they lie in the process, and TVM finds them by their prefix."""
    here = PLATFORMS[platform.machine()]
    monkeypatch.setitem(PLATFORMS, platform.machine(), replace(here, libraries=("model.tar",)))
    compile_model(DEMO, tmp_path / "bundle", device="opencl", attention="dense")
    with tarfile.open(tmp_path / "bundle" / "model.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    link(here, str(tmp_path / "app.so"), [str(path) for path in sorted(tmp_path.glob("*.o"))])
    ctypes.CDLL(str(tmp_path / "app.so"), mode=ctypes.RTLD_GLOBAL)
    monkeypatch.setattr(runtime.tvm_ffi, "load_module", lambda *_, **__: tvm_ffi.system_lib("MiniCPM4_1_demo_w4_"))
    with Engine(tmp_path / "bundle", context=512) as engine:
        answer = engine.chat([{"role": "user", "content": "What is 4827 + 356?"}], max_tokens=128, temperature=0)
    assert "5183" in answer
