"""The Metal target: kernels as Metal Shading Language, compiled by the device's system when they
are first launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.gpu.intrinsics import HALF_BITS_TO_FLOAT
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.gpu_target import GpuTarget

APPLE7 = "apple7"  # of `--arch`, as Metal names its families
PRECISE = ("exp", "log", "sin", "cos", "sqrt")


@dataclass(frozen=True)
class MetalTarget(GpuTarget):
    """Apple GPUs, on macOS and iOS; with `--arch apple7` those that multiply matrices."""

    matrices: bool = False
    device: ClassVar[str] = "metal"
    architectures: ClassVar[dict[str, str]] = {
        APPLE7: "A14, M1 and later: prompts on simdgroup matrices"
    }
    limits: ClassVar[dict[str, int]] = {
        "max_num_threads": 256,  # of a threadgroup
        "thread_warp_size": 1,  # nothing is assumed of threads that run together
        "max_shared_memory_per_block": 32768,
    }

    @classmethod
    def beside(cls, host: CpuTarget, arch: str | None) -> MetalTarget:
        """Raises CompileError for another `--arch`."""
        if arch not in (None, APPLE7):
            raise CompileError(f"--arch {arch}: choose {APPLE7}, or leave it out")
        return cls(host, arch == APPLE7)

    @property
    def traits(self) -> GpuTraits:
        """What its kernels may assume."""
        return GpuTraits(simd_tiles=self.matrices)

    def describe(self) -> dict[str, Any]:
        """What the manifest records."""
        return super().describe() | ({"archs": [APPLE7]} if self.matrices else {})

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it."""
        _use_precise_functions()
        _use_half()
        return super().tvm_target()


@cache
def _use_precise_functions() -> None:
    """TVM's runtime turns Metal's fast maths on, whose cosine of a late position's angle is wrong;
    these are not.
    """
    from tvm.tirx import call_pure_extern, register_intrin_lowering

    def precise(call: Any) -> Any:
        return call_pure_extern(call.ty, f"precise::{call.op.name.split('.')[-1]}", *call.args)

    for name in PRECISE:
        register_intrin_lowering(f"tirx.{name}", target="metal", f=precise, level=99)


@cache
def _use_half() -> None:
    """The bits of a float16 are one of Metal's own half numbers."""
    from tvm.tirx import call_pure_extern, register_intrin_lowering

    def lowered(call: Any) -> Any:
        name, *arguments = call.args
        if name.value != HALF_BITS_TO_FLOAT:
            return call
        return call_pure_extern("float16", "as_type<half>", *arguments).astype("float32")

    register_intrin_lowering("tirx.call_pure_extern", target="metal", f=lowered, level=99)
