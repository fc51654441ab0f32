"""macOS on Apple silicon and Windows on x86-64: what is compiled for them by their formats' rules,
and this package where `platform` and `os` answer as they do there. Nothing here ran on them.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mach_o import DYLIB, MACOS, read_mach_o
from mach_o_rules import broken_rules
from pe import ANY_ADDRESS, NO_EXECUTE, read_pe

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle import host, supported
from minicpm_mlc.bundle.host import Host, compile_options
from minicpm_mlc.compile.package import package_bundle
from minicpm_mlc.runtime_py import machine, other_systems
from minicpm_mlc.targets import DEVICE_OPTIONS, get_target
from minicpm_mlc.targets.link import PLATFORMS

POOL = {f"minicpm_pool_{name}" for name in ("enter", "launch", "leave", "waited")}
SYSTEMS = {  # what platform.system() and platform.machine() say -> a platform of link.py
    ("Darwin", "arm64"): "macos",
    ("Windows", "AMD64"): "windows",
    ("Linux", "x86_64"): "x86_64",
    ("Linux", "aarch64"): "aarch64",
}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """answering(system, machine): what `platform` says from now on."""

    def answer(system: str, processor: str) -> None:
        monkeypatch.setattr(host.platform, "system", lambda: system)
        monkeypatch.setattr(host.platform, "machine", lambda: processor)
        host.this_host.cache_clear()

    yield answer
    monkeypatch.undo()
    host.this_host.cache_clear()


@pytest.fixture(scope="session")
def compiled_for(compiled: Any, tiny_bundle: Any) -> Any:
    """compiled_for(device): a tiny model's bundle."""
    checkpoint = tiny_bundle("MiniCPM5-1B").checkpoint
    named = "tiny MiniCPM5-1B"
    return lambda device: compiled(checkpoint, named=named, device=device, scheme="f32")


def test_a_windows_library_keeps_to_the_pe_format(compiled_for: Any) -> None:
    library = read_pe((compiled_for("windows-x64") / "model.dll").read_bytes())
    platform = PLATFORMS["windows"]
    assert {"kernel32.dll", "tvm_ffi.dll"} <= set(library.needed) <= set(platform.needed)
    assert all(symbols <= set(platform.needed[name]) for name, symbols in library.needed.items())
    assert library.exported >= POOL | {"__TVMBackendParallelLaunch"}
    assert any(name.startswith("__tvm_ffi_") for name in library.exported)
    assert library.relocatable and library.flags & ANY_ADDRESS and library.flags & NO_EXECUTE
    assert library.entry == 0  # nothing of it runs when it is loaded


def test_a_mac_library_keeps_to_the_mach_o_format(compiled_for: Any) -> None:
    library = read_mach_o((compiled_for("macos-arm64") / "model.dylib").read_bytes())
    assert (library.kind, library.name) == (DYLIB, "@rpath/model.dylib")
    assert (library.platform, library.minimum, library.signed) == (MACOS, (13, 0), True)
    assert library.needed == ["/usr/lib/libSystem.B.dylib"]
    assert library.exported >= POOL | {"__TVMBackendParallelLaunch"}
    unused = {"__extendhfsf2", "__truncsfhf2"}  # zig lists them, and binds nothing to them
    undefined = {n for n in library.undefined - unused if not n.startswith("TVM")}
    assert undefined <= {
        *("__ulock_wait", "__ulock_wake", "clock_gettime_nsec_np", "dyld_stub_binder"),
        *(
            "memcpy",
            "memset",
            "memset_pattern16",
            "bzero",
            "pthread_atfork",
            "pthread_create",
            "pthread_detach",
        ),
        *("pthread_self", "sched_yield"),
    }


def test_macos_maps_a_library_for_it(compiled_for: Any) -> None:
    assert broken_rules((compiled_for("macos-arm64") / "model.dylib").read_bytes()) == []


def changed(data: bytes, at: int, form: str, value: int) -> bytes:
    copy = bytearray(data)
    struct.pack_into(form, copy, at, value)
    return bytes(copy)


def test_a_library_that_macos_would_refuse_is_noticed(compiled_for: Any) -> None:
    data = (compiled_for("macos-arm64") / "model.dylib").read_bytes()
    text = 32  # __TEXT, the first command
    for wrong, said in [
        (changed(data, 4096, "<Q", 1), "page 0 has another hash than its signature"),
        (changed(data, text + 32, "<Q", 1 << 40), "__TEXT and __DATA_CONST overlap"),
        (changed(data, text + 60, "<I", 7), "__TEXT has other rights than such a segment"),
        (changed(data, text + 40, "<Q", 8), "__TEXT doesn't begin at a page"),
        (changed(data, 20, "<I", 8), "the commands' sizes don't add up to the header's"),
        (data + bytes(16), "the code signature is not aligned, or not the file's end"),
    ]:
        assert said in broken_rules(wrong)


@pytest.mark.parametrize(
    ("device", "cpu", "int8_dot"),
    [
        ("macos-arm64", None, "dotprod"),
        ("macos-arm64", "apple-m2", "i8mm"),
        ("windows-x64", None, "avx2"),
        ("windows-x64", "x86-64-v2", None),
        ("windows-x64", "znver4", "avx512vnni"),
    ],
)
def test_processors_of_these_systems(device: str, cpu: str | None, int8_dot: str | None) -> None:
    assert get_target(device, cpu).int8_dot == int8_dot


@pytest.mark.parametrize("device", ["macos-arm64", "windows-x64"])
def test_levels_that_are_named_are_levels(device: str) -> None:
    for level in DEVICE_OPTIONS[device].system.levels:
        assert get_target(device, level).describe()["cpu"] == level


def test_a_bundle_is_packaged_for_windows_and_no_other(compiled_for: Any, tmp_path: Path) -> None:
    said = package_bundle(compiled_for("windows-x64"), "windows", tmp_path / "app.zip")
    assert "app.zip" in said
    with pytest.raises(CompileError, match=r"doesn't fit --for linux; .* --device cpu"):
        package_bundle(compiled_for("windows-x64"), "linux")
    with pytest.raises(CompileError, match=r"--device windows-x64"):
        package_bundle(compiled_for("macos-arm64"), "windows")


@pytest.mark.parametrize(("told", "platform"), SYSTEMS.items())
def test_the_default_device_is_this_machines_processor(
    answering: Any, told: tuple[str, str], platform: str
) -> None:
    answering(*told)
    assert DEVICE_OPTIONS["cpu"].system is PLATFORMS[platform]
    here = host.this_host()
    assert compile_options(here, "cpu") == "--device cpu --cpu native"


@pytest.mark.parametrize(
    ("there", "device", "options"),
    [
        (("darwin", "aarch64"), "cpu", "--device macos-arm64"),
        (("darwin", "aarch64"), "metal", "--device metal"),
        (("windows", "x86_64"), "cpu", "--device windows-x64"),
        (("windows", "x86_64"), "cuda", "--device windows-x64"),
        (("linux", "aarch64"), "cuda", "--device linux-arm64 --gpu cuda"),
        (("ios", "aarch64"), "metal", "--device ios"),
    ],
)
def test_what_runs_elsewhere_is_named(
    answering: Any, there: tuple[str, str], device: str, options: str
) -> None:
    answering("Linux", "x86_64")
    assert compile_options(Host(*there, None), device) == options
    answering("Darwin" if there[0] != "darwin" else "Linux", "arm64")
    assert compile_options(Host("linux", "aarch64", frozenset()), "cpu") in (
        "--device linux-arm64",
        "--device cpu --cpu generic",
    )


@pytest.mark.parametrize(
    ("system", "processor", "soabi", "name"),
    [
        ("Darwin", "x86_64", "", "an Intel Mac"),
        ("Windows", "ARM64", "", "Windows on Arm"),
        ("Linux", "x86_64", "cpython-312-x86_64-linux-musl", "Linux with musl"),
        ("Linux", "armv7l", "", "32-bit Arm Linux"),
        ("FreeBSD", "amd64", "", "freebsd on x86_64"),
    ],
)
def test_systems_without_wheels_are_told_so_before_anything_is_fetched(
    answering: Any,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    processor: str,
    soabi: str,
    name: str,
) -> None:
    from minicpm_mlc.hub.pull import local_path

    answering(system, processor)
    monkeypatch.setattr(supported.sysconfig, "get_config_var", lambda _: soabi)
    for refused in (
        lambda: get_target("cpu"),
        lambda: local_path("openbmb/MiniCPM4.1-8B", lambda *_: None, print),
    ):
        with pytest.raises(supported.UnsupportedSystemError, match=f"this is {name}.*no wheels"):
            refused()


def test_a_macs_instruction_sets_are_asked_for(
    answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    told += "hw.optional.arm.AdvSIMD: 1\nhw.optional.floatingpoint: 1\n"
    done = SimpleNamespace(stdout=told)
    monkeypatch.setattr(host.subprocess, "run", lambda *_, **__: done)
    answering("Darwin", "arm64")
    assert host.this_host().features == {"dotprod", "neon"}
    target = {"device": "cpu", "triple": "arm64-apple-macos13.0", "cpu": "apple-m2"}
    assert host.mismatch(target | {"features": ["dotprod"]}, host.this_host()) is None
    why = host.mismatch(target | {"features": ["dotprod", "i8mm"]}, host.this_host())
    assert why == "it was compiled for apple-m2, and this CPU lacks i8mm"


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_memory_and_cores_where_there_is_no_proc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str
) -> None:
    psutil = SimpleNamespace(
        virtual_memory=lambda: SimpleNamespace(total=16 << 30, available=9 << 30),
        cpu_count=lambda logical: 4,
    )
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "CORES", list(range(8)))
    assert machine.total_memory() == 16 << 30
    assert machine.available_memory() == 9 << 30
    assert machine.physical_cores() == 4


def test_a_macs_processor_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(stdout="Apple M2\n")
    monkeypatch.setattr(other_systems.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(other_systems.subprocess, "run", lambda *_, **__: done)
    assert other_systems.processor_name() == "Apple M2"
