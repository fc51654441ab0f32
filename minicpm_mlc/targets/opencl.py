"""The OpenCL target: kernels as OpenCL C 1.2, compiled by the device's own driver when they are
first launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minicpm_mlc.targets.gpu_target import GpuTarget


@dataclass(frozen=True)
class OpenCLTarget(GpuTarget):
    """Any OpenCL 1.2 device."""

    device: ClassVar[str] = "opencl"
    buffer_bytes: ClassVar[int | None] = 128 << 20  # the standard's least
    limits: ClassVar[dict[str, int]] = {
        "max_num_threads": 256,  # of a workgroup
        "thread_warp_size": 1,  # nothing is assumed of threads that run together
        "max_shared_memory_per_block": 32768,
    }
