"""What the GPU targets have in common: a GPU beside a CPU, whose code launches the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.installed import missing_to_compile
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.lowering import gpu_pipeline

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

DOT8 = "dot8"  # of `--arch`: devices that multiply four int8 numbers at once


@dataclass(frozen=True)
class GpuTarget:
    """One kind of GPU. `device` is TVM's name of it, `limits` are the attributes of TVM's target of
    that kind.

    `buffer_bytes`: how much of one tensor every such device reaches; None: all of it.
    `architectures` are what `--arch` may name, each with the GPUs that have it.
    """

    host: CpuTarget
    device: ClassVar[str]
    limits: ClassVar[dict[str, int]]
    buffer_bytes: ClassVar[int | None] = None
    architectures: ClassVar[dict[str, str]] = {}

    @classmethod
    def beside(cls, host: CpuTarget, arch: str | None) -> GpuTarget:
        """The GPU beside a processor. `arch` is what `--arch` names, None without the option or
        for kinds that have no architectures.
        """
        return cls(host)

    @classmethod
    def missing(cls) -> list[str]:
        """The commands that install what compiling takes and is not here."""
        return missing_to_compile()

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """What `minicpm-mlc devices` tells of the kind, ready for JSON; bytes are bytes."""
        archs = {"archs": cls.architectures} if cls.architectures else {}
        return {
            "limits": cls.limits,
            "buffer_bytes": cls.buffer_bytes,
            "subgroups": False,
        } | archs

    @property
    def cpu(self) -> str:
        """LLVM's name of the processor."""
        return self.host.cpu

    @property
    def triple(self) -> str:
        """LLVM's name of the processor's kind and the system."""
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
    def int8_dot(self) -> str | None:
        """What multiplies int8 activations; None where nothing does."""
        return self.traits.int8_dot

    @property
    def no_int8_dot(self) -> str:
        """Why `int8_dot` is None, for a message."""
        return f"kernels for {self.device} have no int8 dot products"

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it."""
        import tvm

        return tvm.target.Target({"kind": self.device, **self.limits}, host=self.host.tvm_target())

    def tir_pipeline(self) -> str:
        """The passes that lower its kernels."""
        return gpu_pipeline()

    def read_kernel(self) -> PrimFunc:
        """READ_KERNEL of its libraries."""
        from minicpm_mlc.ops.gpu.speed_limits import read_peak

        return read_peak()

    def describe(self) -> dict[str, Any]:
        """What the manifest records, checked when the bundle is loaded."""
        return self.host.describe() | {"device": self.device}

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled to the library of this name; the kernels lie in it as data."""
        executable.export_library(library, fcompile=self.link)

    def link(self, library: str, objects: list[str], **options: Any) -> None:
        """Link TVM's objects, as export_library hands them over."""
        self.host.link(library, objects, **options)


@dataclass(frozen=True)
class DotTarget(GpuTarget):
    """A kind of GPU of which some have the integer dot product: with `--arch dot8` the kernels use
    it, and activations are rounded to int8 unless `--activations` says otherwise.
    """

    dot: bool = False
    vector_elements: ClassVar[bool] = True

    @classmethod
    def beside(cls, host: CpuTarget, arch: str | None) -> DotTarget:
        """Raises CompileError for another `--arch`."""
        if arch not in (None, DOT8):
            raise CompileError(f"--arch {arch}: choose {DOT8}, or leave it out")
        return cls(host, arch == DOT8)

    @property
    def traits(self) -> GpuTraits:
        """What its kernels may assume."""
        dot = self.architectures[DOT8] if self.dot else None
        return GpuTraits(int8_dot=dot, vector_elements=self.vector_elements)

    @property
    def no_int8_dot(self) -> str:
        """Why `int8_dot` is None, for a message."""
        return f"{super().no_int8_dot} without --arch {DOT8}"

    def describe(self) -> dict[str, Any]:
        """What the manifest records."""
        return super().describe() | ({"archs": [DOT8]} if self.dot else {})
