"""What this machine is, which devices it can compile for, and what is missing."""

from __future__ import annotations

import platform
from typing import Any

from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.host import mismatch, this_host
from minicpm_mlc.runtime_py.device_here import device_here
from minicpm_mlc.runtime_py.machine import (
    CORES,
    available_memory,
    cpu_name,
    physical_cores,
    total_memory,
)
from minicpm_mlc.targets import DEVICE_OPTIONS


def survey() -> dict[str, Any]:
    """{"machine": facts, "devices": [what _device tells of each]}, ready for JSON."""
    return {"machine": _machine(), "devices": [_device(name) for name in DEVICE_OPTIONS]}


def _machine() -> dict[str, Any]:
    return {
        "processor": cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": physical_cores(),
        "threads": len(CORES),
        "memory": total_memory(),
        "memory available": available_memory(),
        "python": platform.python_version(),
    }


def _device(name: str) -> dict[str, Any]:
    """One value of --device: what it is, the commands that install what compiling lacks, and
    whether bundles run here.

    `name` is the device that is here, `why` what keeps bundles from running; one of them is None.
    """
    option = DEVICE_OPTIONS[name]
    system = option.system
    missing = option.missing()
    here, why = _runs(option.device, system.triple)
    return {
        "device": name,
        "note": option.note,
        "system": system.triple,
        "gpu": option.gpu,
        "gpus": list(option.gpus),
        "libraries": list(system.libraries),
        "needs": option.needs,
        "compile": not missing,
        "missing": missing,
        "run": bool(here),
        "name": here,
        "why": why,
    } | option.facts()


def _runs(device: str, triple: str) -> tuple[str | None, str | None]:
    """(the device that is here, None), or (None, why a bundle for it does not run)."""
    target = {"device": device, "triple": triple, "cpu": "", "features": []}
    if mismatch(target, this_host()):
        return None, f"its libraries are for {triple}"
    return device_here(device)


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
        + (_gpu_lines(device) if "limits" in device else [])
        + (_level_lines(device) if "levels" in device else [])
    )


def _gpu_lines(device: dict[str, Any]) -> list[str]:
    limits = device["limits"]
    reach = device["buffer_bytes"]
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
