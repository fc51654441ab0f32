"""The registry of devices, and what a library that was compiled for another machine looks like."""

from __future__ import annotations

import ctypes
import platform

import pytest
from elf import AARCH64, X86_64, read_shared_object

import minicpm_mlc.host as host
from minicpm_mlc.compile import compile_model
from minicpm_mlc.errors import CompileError
from minicpm_mlc.targets import DEVICES, get_target

PLATFORM = {"memcpy", "memset"}  # of the C library
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64}


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_has_a_target_that_llvm_knows(device):
    target = get_target(device)
    tvm_target = target.tvm_target()
    assert (tvm_target.host or tvm_target).attrs["mtriple"] == target.triple


def test_an_unknown_device_is_refused_with_those_that_exist():
    with pytest.raises(CompileError, match=r"toaster: not a device; there is cpu, linux-arm64, opencl"):
        get_target("toaster")


def test_arm64_code_runs_on_every_processor_unless_one_is_named():
    assert get_target("linux-arm64").features == ("neon",)
    assert "dotprod" in get_target("linux-arm64", "cortex-a76").features


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine is an arm64 one")
def test_the_native_processor_of_another_machine_is_refused():
    with pytest.raises(CompileError, match=r"--cpu native: this machine is no aarch64; .*--cpu generic"):
        get_target("linux-arm64", "native")


@pytest.mark.parametrize("device", ["cpu", "linux-arm64"])
def test_a_library_needs_only_tvms_runtime_and_the_c_library(device, tiny_bundle, tmp_path):
    bundle = tiny_bundle("MiniCPM4-8B")
    if device != "cpu":
        compile_model(bundle.checkpoint, tmp_path / "bundle", device=device)
    library = read_shared_object((bundle.path if device == "cpu" else tmp_path / "bundle") / "model.so")
    assert library.machine == MACHINES[get_target(device).machine]
    assert library.needed == []  # both are in the process that loads it
    assert {name for name in library.undefined if not name.startswith(("TVM", "__TVM"))} <= PLATFORM
    assert any(name.startswith("__tvm_ffi_") for name in library.exported)


def test_arm_features_come_from_the_kernels_bits(monkeypatch):
    class Ask:
        def __call__(self, kind):
            return {16: 1 << 1 | 1 << 20, 26: 1 << 13}[kind]

    monkeypatch.setattr(ctypes, "CDLL", lambda name: type("C", (), {"getauxval": Ask()})())
    assert host._hwcap_features() == {"neon", "dotprod", "i8mm"}
