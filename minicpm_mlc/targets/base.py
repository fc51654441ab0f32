"""What a target is: all that the compiler asks about a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.gpu.traits import GpuTraits

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class Target(Protocol):
    """A device to compile for, with the processor that launches its kernels.

    `device` is its name in bundle/devices.py.
    """

    device: ClassVar[str]

    @property
    def cpu(self) -> str:
        """LLVM's name of the processor."""
        ...

    @property
    def triple(self) -> str:
        """LLVM's name of the processor's kind and the system."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """The files that a bundle gets; the first is the one that Python loads."""
        ...

    @property
    def traits(self) -> CpuTraits | GpuTraits:
        """What its kernels may assume."""
        ...

    @property
    def int8_dot(self) -> str | None:
        """What multiplies int8 activations; None where nothing does."""
        ...

    @property
    def no_int8_dot(self) -> str:
        """Why `int8_dot` is None, for a message."""
        ...

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it, a tvm.target.Target."""
        ...

    def tir_pipeline(self) -> str:
        """TVM's name of the passes that lower its kernels."""
        ...

    def read_kernel(self) -> PrimFunc:
        """READ_KERNEL of its libraries: it only reads the device's memory."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the manifest records, checked when the bundle is loaded."""
        ...

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled to the library of this name, the same bytes each time. Raises
        CompileError where it can't be linked.
        """
        ...
