"""What this machine is, which devices it can compile for, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from .describe import human_bytes
from .errors import BundleError
from .host import this_host
from .runtime_py.machine import available_memory, cpu_name, physical_cores

TVM = "apache-tvm"
LEVELS = {"x86_64": ("x86-64-v2", "x86-64-v3", "x86-64-v4"), "aarch64": ("generic", "cortex-a76", "neoverse-n1")}


def survey() -> dict[str, Any]:
    """{"machine": facts, "devices": [{"device", "compile", "run", "missing": [commands], ...}]}, ready for JSON."""
    return {"machine": _machine(), "devices": [_cpu(), _linux_arm64(), _opencl()]}


def _machine() -> dict[str, Any]:
    return {
        "processor": cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": physical_cores(),
        "threads": os.cpu_count(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "memory available": available_memory(),
        "python": platform.python_version(),
    }


def _cpu() -> dict[str, Any]:
    missing = [command for package, command in _needs() if not _installed(package)]
    found: dict[str, Any] = {"device": "cpu", "compile": not missing, "run": _installed(TVM), "missing": missing}
    return found | _processors() if found["compile"] else found


def _linux_arm64() -> dict[str, Any]:
    missing, host = [command for package, command in _needs() if not _installed(package)], this_host()
    here = (host.system, host.machine) == ("linux", "aarch64")
    return {"device": "linux-arm64", "compile": not missing, "run": here, "missing": missing}


def _opencl() -> dict[str, Any]:
    """`name` is the device's, `why` what keeps bundles from running here; one of them is None."""
    missing = [command for package, command in _needs() if not _installed(package)]
    name, why = _device_name("opencl") if _installed(TVM) else (None, "TVM is missing")
    return {"device": "opencl", "compile": not missing, "run": bool(name), "missing": missing, "name": name, "why": why}


def _device_name(device: str) -> tuple[str | None, str | None]:
    """(name of the first such device, None), or (None, why there is none)."""
    from .runtime_py.library import load_runtime
    from .runtime_py.memory import open_memory

    try:
        load_runtime()
        return open_memory(device).name, None
    except BundleError as error:
        return None, str(error)


def _needs() -> list[tuple[str, str]]:
    """(distribution, command that installs it) for compiling: the compiler and the linker."""
    return [(TVM, "pip install apache-tvm==0.27.0.post1"), ("ziglang", "pip install ziglang")]


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processors() -> dict[str, Any]:
    """This processor as the compiler sees it, and which common levels also run here."""
    from .targets.cpu import CpuTarget

    native, present = CpuTarget.of("native"), this_host().features or frozenset()
    levels = {name: set(CpuTarget.of(name).features) <= present for name in LEVELS[native.machine]}
    return {"native": native.cpu, "features": list(native.features), "levels": levels}


def as_text(found: dict[str, Any]) -> str:
    """The survey for people."""
    lines = []
    for key, value in found["machine"].items():
        lines.append(f"{key:<18} {human_bytes(value) if key.startswith('memory') else value}")
    for device in found["devices"]:
        lines += ["", *_device_lines(device)]
    return "\n".join(lines)


def _device_lines(device: dict[str, Any]) -> list[str]:
    name = device["device"]
    if device["missing"]:
        return [f"{name}: can't compile yet; first: {command}" for command in device["missing"]]
    if name != "cpu":
        runs = "compiles and runs here" if device["run"] else "compiles here, doesn't run here"
        detail = device.get("name") or device.get("why")
        return [f"{name}: {runs}", *([f"  {detail}"] if detail else [])]
    levels = (f"{level} ({'runs' if runs else 'does not run'} here)" for level, runs in device["levels"].items())
    return [
        f"{name}: compiles and runs here",
        f"  --cpu native       {device['native']}: {' '.join(device['features'])}",
        f"  --cpu LEVEL        {', '.join(levels)}",
    ]
