"""The OpenCL target: kernels as OpenCL C, compiled by the device's own driver when they are first launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .cpu import CpuTarget
from .gpu import GpuKernels, gpu_pipeline

LIMITS = {
    "max_num_threads": 256,  # of a workgroup
    "thread_warp_size": 1,  # nothing is assumed of threads that run together
    "max_shared_memory_per_block": 32768,
}


@dataclass(frozen=True)
class OpenCLTarget:
    """OpenCL 1.2 beside a CPU, whose code launches the kernels."""

    host: CpuTarget
    device: str = "opencl"
    int8_dot: None = None

    @property
    def cpu(self) -> str:
        return self.host.cpu

    @property
    def triple(self) -> str:
        return self.host.triple

    @property
    def kernels(self) -> GpuKernels:
        return GpuKernels()

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it."""
        import tvm

        return tvm.target.Target({"kind": "opencl", **LIMITS}, host=self.host.tvm_target())

    def tir_pipeline(self) -> str:
        """The passes that lower its kernels."""
        return gpu_pipeline()

    def describe(self) -> dict[str, Any]:
        """What the manifest records, checked when the bundle is loaded."""
        return self.host.describe() | {"device": self.device}

    def link(self, library: str, objects: list[str], **options: Any) -> None:
        """Link the host's code; the kernels lie in it as data."""
        self.host.link(library, objects, **options)
