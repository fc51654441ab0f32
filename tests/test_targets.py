"""The registry of devices, and what a library that was compiled for another machine looks like."""

from __future__ import annotations

import ctypes
import platform
import shutil
from pathlib import Path

import pytest
from conftest import DEMO
from elf import AARCH64, X86_64, read_shared_object

import minicpm_mlc.bundle.host as host
from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.runtime_py import tvm_files
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.memory import open_memory
from minicpm_mlc.targets import DEVICE_OPTIONS, get_target
from minicpm_mlc.targets.embed import changed, string
from minicpm_mlc.targets.link import PLATFORMS, link, zig
from minicpm_mlc.targets.registry import NO_GPU

PLATFORM = {"memcpy", "memset"}  # of the C library
THREADS = {  # what the thread pool takes of Linux's C library
    "__register_atfork",
    "clock_gettime",
    "pthread_create",
    "pthread_detach",
    "pthread_self",
    "sched_yield",
    "syscall",
}
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64}
ALL = "cpu, linux-arm64, macos-arm64, windows-x64, cuda, opencl, vulkan, android, metal, ios, web"


@pytest.mark.parametrize("device", DEVICE_OPTIONS)
def test_every_device_has_a_target_that_llvm_knows(device):
    for gpu in (None, *DEVICE_OPTIONS[device].gpus):
        target = get_target(device, gpu=gpu)
        tvm_target = target.tvm_target()
        assert (tvm_target.host or tvm_target).attrs["mtriple"] == target.triple
        named = "cpu" if gpu == NO_GPU else gpu
        assert target.describe()["device"] == (named or DEVICE_OPTIONS[device].device)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "toaster"}, f"toaster: not a device; there is {ALL}"),
        ({"device": "cpu", "gpu": "cuda"}, "--gpu cuda: for --device cpu there is none"),
        (
            {"device": "android", "gpu": "metal"},
            "--gpu metal: for --device android choose opencl, vulkan",
        ),
        (
            {"device": "cuda", "arch": "sm_90,sm_35"},
            "--arch sm_35: choose all, or of sm_80, sm_87, sm_89, sm_90",
        ),
        (
            {"device": "cpu", "arch": "sm_90"},
            "--arch sm_90: --device cpu has none; there are some for cuda, ",
        ),
        ({"device": "metal", "arch": "sm_90"}, "--arch sm_90: choose apple7, or leave it out"),
        ({"device": "opencl", "arch": "sm_90"}, "--arch sm_90: choose dot8, or leave it out"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(options, message):
    with pytest.raises(CompileError, match=message):
        get_target(**options)


def test_cuda_is_compiled_for_the_architectures_named_or_all():
    assert get_target("cuda", arch="sm_120,sm_87").describe()["archs"] == ["sm_87", "sm_120"]
    assert get_target("cuda").describe() == get_target("cuda", arch="all").describe()
    assert {"sm_87", "sm_89", "sm_90", "sm_120"} <= set(get_target("cuda").describe()["archs"])


def test_arm64_code_runs_on_every_processor_unless_one_is_named():
    assert get_target("linux-arm64").describe()["features"] == ["neon"]
    assert "dotprod" in get_target("linux-arm64", "cortex-a76").describe()["features"]


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine is an arm64 one")
def test_the_native_processor_of_another_machine_is_refused():
    with pytest.raises(
        CompileError,
        match=r"--cpu native: this machine is no aarch64-unknown-linux-gnu; .*--cpu generic",
    ):
        get_target("linux-arm64", "native")


@pytest.mark.parametrize("device", ["cpu", "linux-arm64"])
def test_a_library_needs_only_tvms_runtime_and_the_c_library(device, demo_bundle, compiled):
    here = device == "cpu"
    bundle = demo_bundle if here else compiled(DEMO, device=device, scheme="f32")
    library = read_shared_object(bundle / "model.so")
    assert library.machine == MACHINES[platform.machine() if here else "aarch64"]
    assert library.needed == []  # both are in the process that loads it
    undefined = {name for name in library.undefined if not name.startswith(("TVM", "__TVM"))}
    assert undefined <= PLATFORM | THREADS
    assert {name for name in library.exported if "pool" in name} == {
        "minicpm_pool_enter",
        "minicpm_pool_launch",
        "minicpm_pool_leave",
        "minicpm_pool_waited",
    }
    assert any(name.startswith("__tvm_ffi_") for name in library.exported)


@pytest.mark.parametrize("platform_name", PLATFORMS)
def test_the_same_objects_give_the_same_library_anywhere(platform_name: str, tmp_path: Path):
    there, written = PLATFORMS[platform_name], []
    (tmp_path / "code.c").write_text("int f(void) { return 1; }\n")
    zig("cc", "-target", there.zig, "-c", "-o", str(tmp_path / "code.o"), str(tmp_path / "code.c"))
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        copied = shutil.copy(tmp_path / "code.o", folder)
        for library in there.libraries:
            link(there, str(folder / library), [str(copied)])
            written.append((folder / library).read_bytes())
    assert written[: len(written) // 2] == written[len(written) // 2 :]


def test_a_symbol_that_android_has_not_fails_the_link(tmp_path: Path):
    source = tmp_path / "code.s"
    source.write_text(".globl f\nf: b no_such_function\n")
    with pytest.raises(CompileError, match="no_such_function"):
        link(PLATFORMS["android"], str(tmp_path / "model.so"), [str(source)])


def test_the_imports_of_a_library_are_changed_one_by_one():
    tree = b"".join(n.to_bytes(8, "little") for n in (4, 0, 2, 2, 2, 2, 1, 2))
    packed = string(
        tree
        + string(b"_lib")
        + string(b"vm")
        + string(b"code")
        + string(b"cuda")
        + string(b"source")
    )
    seen = changed(
        packed, lambda kind, content: (kind, b"machine code" if kind == "cuda" else content)
    )
    assert seen == packed[:0] + string(packed[8 : -8 - len(b"source")] + string(b"machine code"))
    with pytest.raises(ValueError, match="packed imports end within"):
        changed(packed[:-1], lambda kind, content: (kind, content))


@pytest.mark.parametrize(
    "device, needs", [("cuda", "NVIDIA's driver"), ("metal", "macOS on Apple silicon")]
)
def test_a_device_that_is_not_here_is_refused_with_what_it_needs(device, needs, monkeypatch):
    monkeypatch.setattr(
        tvm_files.ctypes, "CDLL", lambda *_, **__: (_ for _ in ()).throw(OSError("no such file"))
    )
    monkeypatch.setattr(
        "minicpm_mlc.runtime_py.tvm_device.tvm_ffi.get_global_func", lambda *_, **__: None
    )
    with pytest.raises(BundleError, match=f"TVM.*; it takes {needs}"):
        open_memory(device)


def test_arm_features_come_from_the_kernels_bits(monkeypatch):
    class Ask:
        def __call__(self, kind):
            return {16: 1 << 1 | 1 << 20, 26: 1 << 13}[kind]

    monkeypatch.setattr(ctypes, "CDLL", lambda name: type("C", (), {"getauxval": Ask()})())
    assert host._hwcap_features() == {"neon", "dotprod", "i8mm"}


def test_what_a_bundle_for_elsewhere_advises_is_a_device_for_that_system():
    for system, device in host.DEVICE_OF_SYSTEM.items():
        assert host.system_of(DEVICE_OPTIONS[device].system.triple) == system
    assert {option.device for option in DEVICE_OPTIONS.values()} == set(DEVICE_RUNTIMES)


@pytest.mark.parametrize("device", DEVICE_RUNTIMES)
def test_a_devices_number_is_dlpacks(device):
    names = {kind.name.lower(): int(kind) for kind in tvm_ffi.DLDeviceType}
    assert DEVICE_RUNTIMES[device].dlpack == names[f"kdl{device}"]
