"""What the GPU targets have in common: a GPU beside a CPU, whose code launches the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.gpu import GpuKernels, gpu_pipeline


@dataclass(frozen=True)
class GpuTarget:
    """One kind of GPU. `device` is TVM's name of it, `limits` are the attributes of TVM's target of
    that kind.

    `buffer_bytes`: how much of one tensor every such device reaches; None: all of it.
    """

    host: CpuTarget
    device: ClassVar[str]
    limits: ClassVar[dict[str, int]]
    buffer_bytes: ClassVar[int | None] = None
    int8_dot: ClassVar[None] = None

    @property
    def cpu(self) -> str:
        return self.host.cpu

    @property
    def triple(self) -> str:
        return self.host.triple

    @property
    def libraries(self) -> tuple[str, ...]:
        """The files that a bundle gets; the first is the one that Python loads."""
        return self.host.libraries

    @property
    def traits(self) -> GpuTraits:
        """What its kernels may assume."""
        return GpuTraits()

    @property
    def kernels(self) -> GpuKernels:
        return GpuKernels()

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it."""
        import tvm

        return tvm.target.Target({"kind": self.device, **self.limits}, host=self.host.tvm_target())

    def tir_pipeline(self) -> str:
        """The passes that lower its kernels."""
        return gpu_pipeline()

    def describe(self) -> dict[str, Any]:
        """What the manifest records, checked when the bundle is loaded."""
        return self.host.describe() | {"device": self.device}

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled to the library of this name; the kernels lie in it as data."""
        self.host.export(executable, library)

    def link(self, library: str, objects: list[str], **options: Any) -> None:
        """Link TVM's objects, as export_library hands them over."""
        self.host.link(library, objects, **options)
