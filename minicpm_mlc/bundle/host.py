"""Which machine this is, in LLVM's words, and whether a bundle's target can run on it."""

from __future__ import annotations

import ctypes
import functools
import platform
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES

# LLVM feature -> /proc/cpuinfo flag. Only instruction sets that a compiler emits; LLVM's lists also
# hold tuning hints.
_SAME_NAME = (
    "ssse3 popcnt movbe bmi2 avx f16c fma avx2 avx512f avx512cd avx512bw avx512dq avx512vl "
    "avx512ifma avx512vbmi "
    "i8mm bf16 sve sve2"
)
FLAGS = {name: name for name in _SAME_NAME.split()} | {
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "avxvnni": "avx_vnni",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "neon": "asimd",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
}
# LLVM feature -> (getauxval's type, bit) as in the kernel's arch/arm64/include/uapi/asm/hwcap.h
_HWCAP = 16
_HWCAP2 = 26
ARM_BITS = {
    "neon": (_HWCAP, 1),
    "lse": (_HWCAP, 8),
    "fullfp16": (_HWCAP, 10),
    "rdm": (_HWCAP, 12),
    "dotprod": (_HWCAP, 20),
    "sve": (_HWCAP, 22),
    "fp16fml": (_HWCAP, 23),
    "sve2": (_HWCAP2, 1),
    "i8mm": (_HWCAP2, 13),
    "bf16": (_HWCAP2, 14),
}
# LLVM feature -> macOS's name of it below hw.optional.arm
APPLE_NAMES = {
    "neon": "AdvSIMD",
    "lse": "FEAT_LSE",
    "fullfp16": "FEAT_FP16",
    "rdm": "FEAT_RDM",
    "dotprod": "FEAT_DotProd",
    "fp16fml": "FEAT_FHM",
    "i8mm": "FEAT_I8MM",
    "bf16": "FEAT_BF16",
}
MACHINE_ALIASES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}  # Linux's name of each
SYSTEM_WORDS = {  # of LLVM's triples, the system that each stands for; the first that occurs counts
    "android": "android",
    "linux": "linux",
    "darwin": "darwin",
    "macos": "darwin",
    "ios": "ios",
    "windows": "windows",
    "mingw": "windows",
    "wasi": "web",
    "web": "web",
}
# by system, the value of --device whose bundles run there; Linux has one per machine
DEVICE_OF_SYSTEM = {
    "android": "android",
    "darwin": "metal",
    "ios": "ios",
    "windows": "windows-x64",
    "web": "web",
}
# and the one for its processor alone
CPU_DEVICES = {
    ("linux", "aarch64"): "linux-arm64",
    ("darwin", "aarch64"): "macos-arm64",
    ("windows", "x86_64"): "windows-x64",
}


@dataclass(frozen=True)
class Host:
    """`features` are LLVM names; None where the system doesn't tell, and then they are not
    checked.
    """

    system: str
    machine: str
    features: frozenset[str] | None


@functools.cache
def this_host() -> Host:
    """The machine this process runs on."""
    system = "android" if hasattr(sys, "getandroidapilevel") else platform.system().lower()
    machine = _machine(platform.machine())
    if system == "darwin":
        return Host(system, machine, _apple_features())
    arm_linux = machine == "aarch64" and system in ("linux", "android")
    return Host(system, machine, _hwcap_features() if arm_linux else _cpuinfo_features())


def mismatch(target: dict[str, Any], host: Host) -> str | None:
    """Why a library for `target` {device, triple, cpu, features} can't run on `host`, or None if it
    can.
    """
    if target["device"] not in DEVICE_RUNTIMES:
        return (
            f"it was compiled for device {target['device']}, and this version runs "
            f"{' and '.join(DEVICE_RUNTIMES)}"
        )
    system = system_of(target["triple"])
    machine = _machine(target["triple"].split("-")[0])
    if (system, machine) != (host.system, host.machine):
        return (
            f"it was compiled for {machine} {system}, and this machine is {host.machine} "
            f"{host.system}"
        )
    if missing := missing_features(target["features"], host):
        return f"it was compiled for {target['cpu']}, and this CPU lacks {', '.join(missing)}"
    return None


def compile_options(host: Host, device: str) -> str:
    """The options of `minicpm-mlc compile`, given here, for a bundle that runs on `host`: on
    `device` if that has one.
    """
    here = this_host()
    runtime = DEVICE_RUNTIMES.get(device)
    gpu = device if runtime and runtime.beside_linux and host.system == "linux" else None
    on_processor = host.system == "linux" or device == "cpu"
    if on_processor and (host.system, host.machine) == (here.system, here.machine):
        return f"--device {gpu or 'cpu'} --cpu {'native' if host == here else _level(host)}"
    processor = CPU_DEVICES.get((host.system, host.machine))
    if on_processor and processor:
        return f"--device {processor}{f' --gpu {gpu}' if gpu else ''}"
    if host.machine == "aarch64" and host.system in DEVICE_OF_SYSTEM:
        return f"--device {DEVICE_OF_SYSTEM[host.system]}"
    return f"--device {processor or 'DEVICE; minicpm-mlc devices lists them'}"


def _level(host: Host) -> str:
    """A processor of `--cpu` whose code runs on `host`."""
    if host.machine != "x86_64":
        return "generic"
    return "x86-64-v3" if "avx2" in (host.features or ()) else "x86-64-v2"


def missing_features(features: list[str], host: Host) -> list[str]:
    """Instruction sets among `features` (LLVM names) that `host` is known to lack."""
    if host.features is None:
        return []
    return sorted(name for name in features if name in FLAGS and name not in host.features)


def _machine(name: str) -> str:
    return MACHINE_ALIASES.get(name.lower(), name.lower())


def system_of(triple: str) -> str:
    """The operating system of an LLVM triple, or of one of its words alone, such as macos."""
    return next((system for word, system in SYSTEM_WORDS.items() if word in triple), "unknown")


def _hwcap_features() -> frozenset[str]:
    """What the kernel, or an emulator in its place, tells the C library; /proc/cpuinfo is the real
    machine's.
    """
    ask = ctypes.CDLL(None).getauxval
    ask.argtypes = [ctypes.c_ulong]
    ask.restype = ctypes.c_ulong
    return frozenset(name for name, (kind, bit) in ARM_BITS.items() if ask(kind) >> bit & 1)


def _apple_features() -> frozenset[str] | None:
    """What macOS 12 and later tells; None before."""
    command = ["/usr/sbin/sysctl", "hw.optional"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    present = {line.partition(":")[0].split(".")[-1] for line in told.splitlines() if ": 1" in line}
    return frozenset(llvm for llvm, name in APPLE_NAMES.items() if name in present) or None


def _cpuinfo_features() -> frozenset[str] | None:
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return None
    flags = next(
        (value.split() for key, _, value in lines if key.strip() in ("flags", "Features")), None
    )
    if flags is None:
        return None
    return frozenset(name for name, flag in FLAGS.items() if flag in flags)
