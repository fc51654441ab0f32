"""The kinds of device that bundles run on, and what running them there takes: one entry each.

What is compiled for a device is in targets/; a bundle's manifest names the device as here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["tvm", "tvm-library", "minicpm-mlc-native"]


@dataclass(frozen=True)
class DeviceRuntime:
    """How one kind of device runs bundles.

    `dlpack` is DLPack's number of the kind. `source` is what brings its runtime: TVM's runtime
    itself, a library beside it in TVM's wheel, or our own package. `needs` says what to install.
    `in_process`: its tensors lie in this process's memory, and a call returns when it is done.
    `beside_linux`: it stands beside the processor of a Linux machine, whatever that is. `library`
    is what its runtime needs from another wheel, as a pattern below a folder of sys.path.
    """

    dlpack: int
    source: Source
    needs: str
    in_process: bool = False
    beside_linux: bool = False
    library: str | None = None


_NATIVE = "minicpm-mlc-native (in a checkout: make native) and a driver"
DEVICE_RUNTIMES = {
    "cpu": DeviceRuntime(1, "tvm", "pip install minicpm-mlc", in_process=True),
    "cuda": DeviceRuntime(
        2,
        "tvm-library",
        "NVIDIA's driver of the 580 series or later, and: "
        "pip install 'nvidia-cuda-runtime>=13,<14'",
        beside_linux=True,
        library="nvidia/*/lib/libcudart.so.13",
    ),
    "metal": DeviceRuntime(
        8, "tvm-library", "macOS on Apple silicon, and: pip install minicpm-mlc"
    ),
    "opencl": DeviceRuntime(4, "minicpm-mlc-native", _NATIVE, beside_linux=True),
    "vulkan": DeviceRuntime(7, "minicpm-mlc-native", _NATIVE, beside_linux=True),
}
