"""The devices: which system and processor each one's code runs on, and with which GPU beside it."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.cuda import CudaTarget, parse_archs
from minicpm_mlc.targets.gpu_target import GpuTarget
from minicpm_mlc.targets.metal import MetalTarget
from minicpm_mlc.targets.opencl import OpenCLTarget
from minicpm_mlc.targets.vulkan import VulkanTarget

Target = CpuTarget | GpuTarget  # what the compiler asks of a device is what both have

GPUS: dict[str, type[GpuTarget]] = {
    "opencl": OpenCLTarget,
    "vulkan": VulkanTarget,
    "metal": MetalTarget,
}


@dataclass(frozen=True)
class Device:
    """A choice of `--device`. `platform` None is Linux on this machine, `gpu` None the processor
    itself.

    `cpu` is the processor unless another is named, `gpus` are the other choices of `--gpu`; `note`
    says what its bundles are for, `needs` what runs them.
    """

    platform: str | None
    gpu: str | None
    cpu: str
    note: str
    needs: str
    gpus: tuple[str, ...] = ()


_ANDROID = "arm64 Android 7 or later: model.so, and model.tar to link in an app"
_IOS = "iOS 16 or later: model.a to link in an app"
_APP = "an app with TVM's runtime for the GPU"
_BESIDE = ("cuda", "opencl", "vulkan")
_PIP = "pip install minicpm-mlc"
_NATIVE = "minicpm-mlc-native (in a checkout: make native) and a driver"
_DRIVER = "NVIDIA's driver of the 580 series or later, pip install 'nvidia-cuda-runtime>=13,<14'"
_MACOS = "macOS 13 or later on Apple silicon; the system compiles the kernels"
DEVICES = {
    "cpu": Device(
        None, None, "native", "this machine's processor, or another one that --cpu names", _PIP
    ),
    "linux-arm64": Device(
        "aarch64", None, "generic", "arm64 Linux; with --gpu, a GPU beside it", _PIP, _BESIDE
    ),
    "cuda": Device(
        None, "cuda", "native", "NVIDIA GPUs; machine code for those that --arch names", _DRIVER
    ),
    "opencl": Device(
        None, "opencl", "native", "OpenCL 1.2; the driver compiles the kernels", _NATIVE
    ),
    "vulkan": Device(
        None,
        "vulkan",
        "native",
        "Vulkan 1.1 with 8- and 16-bit numbers in storage buffers",
        _NATIVE,
    ),
    "android": Device("android", "opencl", "generic", _ANDROID, _APP, ("vulkan",)),
    "metal": Device("macos", "metal", "apple-a14", _MACOS, _PIP),
    "ios": Device("ios", "metal", "apple-a12", _IOS, _APP),
}


def find_device(device: str) -> Device:
    """Raises CompileError with the devices that exist."""
    if device not in DEVICES:
        raise CompileError(f"--device {device}: not a device; there is {', '.join(DEVICES)}")
    return DEVICES[device]


def gpu_class(gpu: str) -> type[GpuTarget]:
    """The target's class of a GPU that a device names."""
    return CudaTarget if gpu == "cuda" else GPUS[gpu]


def get_target(
    device: str, cpu: str | None = None, gpu: str | None = None, arch: str | None = None
) -> Target:
    """The target of `--device` with these options. Raises CompileError for what doesn't exist,
    naming what does.

    `cpu` None: this machine's processor where it is the device or beside it, else one whose code
    runs on all of its kind.
    """
    found = find_device(device)
    if gpu is not None and gpu not in found.gpus and gpu != found.gpu:
        choices = ", ".join(filter(None, (found.gpu, *found.gpus)))
        raise CompileError(
            f"--gpu {gpu}: for --device {device} "
            + (f"choose {choices}" if choices else "there is none")
        )
    kind = gpu or found.gpu
    if arch is not None and kind != "cuda":
        raise CompileError(f"--arch {arch}: only CUDA has it; use --device cuda")
    host = CpuTarget.of(cpu or found.cpu, found.platform)
    if kind is None:
        return host
    return CudaTarget(host, parse_archs(arch)) if kind == "cuda" else GPUS[kind](host)
