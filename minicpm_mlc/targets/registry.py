"""The values of `--device`: which system and processor each one's code runs on, and with which GPU
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.text import any_of
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.targets.base import Target
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.cuda import CudaTarget
from minicpm_mlc.targets.gpu_target import GpuTarget
from minicpm_mlc.targets.link import PLATFORMS, Platform, platform_here
from minicpm_mlc.targets.metal import MetalTarget
from minicpm_mlc.targets.opencl import OpenCLTarget
from minicpm_mlc.targets.vulkan import VulkanTarget
from minicpm_mlc.targets.web import WebTarget

NO_GPU = "none"
GPUS: dict[str, type[GpuTarget]] = {
    kind.device: kind for kind in (CudaTarget, OpenCLTarget, VulkanTarget, MetalTarget)
}


@dataclass(frozen=True)
class DeviceOption:
    """A value of `--device`; `note` says what its bundles are for.

    `platform` None is this machine's, `gpu` None the processor itself. `cpu` is the processor
    unless another is named, `gpus` are the other values of `--gpu`; NO_GPU among them is the
    processor alone. `app`: what runs the bundles, where that is not this package. `host`: the
    processor's target.
    """

    note: str
    platform: str | None = None
    gpu: str | None = None
    cpu: str = "native"
    gpus: tuple[str, ...] = ()
    app: str | None = None
    host: type[CpuTarget] = CpuTarget

    @property
    def system(self) -> Platform:
        """Where its libraries run."""
        return PLATFORMS[self.platform] if self.platform else platform_here()

    @property
    def device(self) -> str:
        """The device that its bundles name, unless another GPU is chosen."""
        return self.gpu or CpuTarget.device

    @property
    def needs(self) -> str:
        """What runs its bundles, for people."""
        return self.app or DEVICE_RUNTIMES[self.device].needs

    def missing(self) -> list[str]:
        """The commands that install what compiling takes and is not here."""
        return (GPUS[self.gpu] if self.gpu else CpuTarget).missing()

    def facts(self) -> dict[str, Any]:
        """What `minicpm-mlc devices` tells beside the rest, ready for JSON."""
        if self.gpu:
            return GPUS[self.gpu].facts()
        return {} if self.platform or self.missing() else CpuTarget.facts()


_APP = "an app with TVM's runtime for the GPU"
DEVICE_OPTIONS = {
    "cpu": DeviceOption("this machine's processor, or another one that --cpu names"),
    "linux-arm64": DeviceOption(
        "arm64 Linux; with --gpu, a GPU beside it",
        platform="aarch64",
        cpu="generic",
        gpus=tuple(name for name in GPUS if DEVICE_RUNTIMES[name].beside_linux),
    ),
    "macos-arm64": DeviceOption(
        "macOS 13 or later on Apple silicon, its processor; --cpu apple-m2 for newer ones",
        platform="macos",
        cpu="apple-m1",
    ),
    "windows-x64": DeviceOption(
        "Windows 10 or later on x86-64 with AVX2; --cpu x86-64-v2 for older ones",
        platform="windows",
        cpu="x86-64-v3",
    ),
    "cuda": DeviceOption("NVIDIA GPUs; machine code for those that --arch names", gpu="cuda"),
    "opencl": DeviceOption("OpenCL 1.2; the driver compiles the kernels", gpu="opencl"),
    "vulkan": DeviceOption(
        "Vulkan 1.1 with 8- and 16-bit numbers in storage buffers", gpu="vulkan"
    ),
    "android": DeviceOption(
        "arm64 Android 7 or later: model.so, and model.tar to link in an app",
        platform="android",
        gpu="opencl",
        cpu="generic",
        gpus=("vulkan", NO_GPU),
        app=_APP,
    ),
    "metal": DeviceOption(
        "macOS 13 or later on Apple silicon; the system compiles the kernels",
        platform="macos",
        gpu="metal",
        cpu="apple-a14",
    ),
    "ios": DeviceOption(
        "iOS 16 or later: model.a to link in an app",
        platform="ios",
        gpu="metal",
        cpu="apple-a12",
        gpus=(NO_GPU,),
        app=_APP,
    ),
    "web": DeviceOption(
        "web pages, by WebAssembly with vectors: model.tar, which package --engine links",
        platform="web",
        cpu="generic",
        app="a browser, and minicpm-mlc package --for web --engine",
        host=WebTarget,
    ),
}


def get_target(
    device: str, cpu: str | None = None, gpu: str | None = None, arch: str | None = None
) -> Target:
    """The target of `--device` with these options. Raises CompileError for what doesn't exist,
    naming what does.

    `cpu` None: this machine's processor where it is the device or beside it, else one whose code
    runs on all of its kind.
    """
    if device not in DEVICE_OPTIONS:
        there = ", ".join(DEVICE_OPTIONS)
        raise CompileError(f"--device {device}: not a device; there is {there}")
    option = DEVICE_OPTIONS[device]
    if gpu is not None and gpu not in option.gpus and gpu != option.gpu:
        choices = ", ".join(filter(None, (option.gpu, *option.gpus)))
        advice = f"choose {choices}" if choices else "there is none"
        raise CompileError(f"--gpu {gpu}: for --device {device} {advice}")
    kind = gpu or option.gpu
    if arch is not None and not (kind in GPUS and GPUS[kind].architectures):
        having = any_of([name for name, each in GPUS.items() if each.architectures])
        raise CompileError(
            f"--arch {arch}: --device {device} has none; there are some for {having}"
        )
    host = option.host.of(cpu or option.cpu, option.platform)
    return GPUS[kind].beside(host, arch) if kind and kind != NO_GPU else host
