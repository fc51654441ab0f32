"""What this machine is, which devices it can compile for, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.host import mismatch, this_host
from minicpm_mlc.runtime_py.machine import available_memory, cpu_name, physical_cores
from minicpm_mlc.targets.cuda import ARCHS
from minicpm_mlc.targets.cuda_compiler import GET_NVRTC, has_compiler
from minicpm_mlc.targets.link import PLATFORMS

TVM = "apache-tvm"
LEVELS = {
    "x86_64": ("x86-64-v2", "x86-64-v3", "x86-64-v4"),
    "aarch64": ("generic", "cortex-a76", "neoverse-n1"),
}


def survey() -> dict[str, Any]:
    """{"machine": facts, "devices": [what _device tells of each]}, ready for JSON."""
    from minicpm_mlc.targets import DEVICES

    return {"machine": _machine(), "devices": [_device(name) for name in DEVICES]}


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


def _device(name: str) -> dict[str, Any]:
    """One choice of --device: what it is, the commands that install what compiling lacks, and
    whether bundles run here.

    `name` is the device that is here, `why` what keeps bundles from running; one of them is None.
    """
    from minicpm_mlc.runtime_py.device_here import device_here
    from minicpm_mlc.targets import find_device, gpu_class

    device = find_device(name)
    system = PLATFORMS[device.platform or platform.machine()]
    missing = [command for package, command in _needs(device.gpu) if not package]
    target = {"device": device.gpu or "cpu", "triple": system.triple, "cpu": "", "features": []}
    why = f"its libraries are for {system.triple}" if mismatch(target, this_host()) else None
    here, why = (None, why) if why else device_here(device.gpu or "cpu")
    found: dict[str, Any] = {
        "device": name,
        "note": device.note,
        "system": system.triple,
        "gpu": device.gpu,
        "gpus": list(device.gpus),
        "libraries": list(system.libraries),
        "needs": device.needs,
        "compile": not missing,
        "missing": missing,
        "run": bool(here),
        "name": here,
        "why": why,
    }
    if device.gpu:
        target_class = gpu_class(device.gpu)
        found |= {
            "limits": target_class.limits,
            "buffer_bytes": target_class.buffer_bytes,
            "subgroups": False,
        }
    if device.gpu == "cuda":
        found["archs"] = ARCHS
    return found | _processors() if name == "cpu" and found["compile"] else found


def _needs(gpu: str | None) -> list[tuple[bool, str]]:
    """(is it here, command that installs it) for compiling: the compiler, the linker, and CUDA's
    own compiler.
    """
    needs = [
        (_installed(TVM), "pip install apache-tvm==0.27.0.post1"),
        (_installed("ziglang"), "pip install ziglang"),
    ]
    return needs + ([(has_compiler(tuple(ARCHS)), GET_NVRTC)] if gpu == "cuda" else [])


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processors() -> dict[str, Any]:
    """This processor as the compiler sees it, and which common levels also run here."""
    from minicpm_mlc.targets.cpu import CpuTarget

    native, present = CpuTarget.of("native"), this_host().features or frozenset()
    levels = {
        name: set(CpuTarget.of(name).features) <= present
        for name in LEVELS[native.platform.machine]
    }
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
    first = f"{device['device']}: {device['note']}"
    if device["missing"]:
        return [first, *(f"  can't compile yet; first: {command}" for command in device["missing"])]
    runs = (
        f"runs here on {device['name']}" if device["run"] else f"doesn't run here: {device['why']}"
    )
    lines = [first, f"  compiles here; {runs}"]
    lines += [f"  bundles            {' and '.join(device['libraries'])} for {device['system']}"]
    lines += [f"  they need          {device['needs']}"]
    if device["gpus"]:
        lines.append(f"  --gpu              {', '.join(device['gpus'])}")
    if "archs" in device:
        lines += [f"  --arch {arch:<11} {gpus}" for arch, gpus in device["archs"].items()]
    return (
        lines
        + (_gpu_lines(device) if device["gpu"] else [])
        + (_level_lines(device) if "levels" in device else [])
    )


def _gpu_lines(device: dict[str, Any]) -> list[str]:
    limits, reach = device["limits"], device["buffer_bytes"]
    memory = human_bytes(limits["max_shared_memory_per_block"])
    lines = [
        f"  workgroups         up to {limits['max_num_threads']} threads, {memory} of shared "
        "memory; no subgroups"
    ]
    if reach:
        lines.append(
            f"  one tensor         up to what the device reaches, {human_bytes(reach)} or more"
        )
    return lines


def _level_lines(device: dict[str, Any]) -> list[str]:
    levels = (
        f"{level} ({'runs' if runs else 'does not run'} here)"
        for level, runs in device["levels"].items()
    )
    return [
        f"  --cpu native       {device['native']}: {' '.join(device['features'])}",
        f"  --cpu LEVEL        {', '.join(levels)}",
    ]
