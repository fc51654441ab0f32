"""The CPU target: which processor to compile for, what it needs at run time, and how its library is
linked.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.host import FLAGS, this_host
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.targets.base import missing_to_compile
from minicpm_mlc.targets.link import PLATFORMS, Platform, link

# independent multiply-adds that hide their latency and fit 32 registers of 16 lanes
PEAK_VECTORS = 10
BF16_DOT = "avx512bf16"  # the feature with dot products of bfloat16
# features with int8 dot products, the fastest first
INT8_DOTS = ("avx512vnni", "avxvnni", "avx2", "i8mm", "dotprod")
LEVELS = {  # processors that `--cpu` names besides this machine's, the oldest first
    "x86_64": ("x86-64-v2", "x86-64-v3", "x86-64-v4"),
    "aarch64": ("generic", "cortex-a76", "neoverse-n1"),
}


@dataclass(frozen=True)
class CpuKernels:
    """The operators as the CPU wants them; equal calls share one PrimFunc.

    `accumulators`: vectors of 16 float32 lanes that stay in registers beside their operands.
        `int8_dot`: the feature
    whose dot products the linears with int8 activations use, if there is one. `bf16_dot`: whether
    attention multiplies a bfloat16 cache as it is, which rounds queries and softmax weights to
    bfloat16.
    """

    accumulators: int
    int8_dot: str | None = None
    bf16_dot: bool = False

    def exact(self) -> CpuKernels:
        """Those that round no activations where they have the choice."""
        return replace(self, bf16_dot=False)

    def embed(self, *shape: Any, **options: Any) -> Any:
        return _build("embed", "embed", *shape, **options)

    def linear(self, *shape: Any, **options: Any) -> Any:
        return _build("linear", "linear", *shape, **options)

    def linear_int8(self, *shape: Any, **options: Any) -> Any:
        return _build("linear_int8", "linear_int8", *shape, self.int8_dot, **options)

    def quantize_rows(self, columns: int, scheme: Any) -> Any:
        """The activations as linear_int8 takes them beside weights of this scheme."""
        return _build("quantize_rows", "quantize_rows", columns, self.sum_factor(scheme))

    def rms_norm_int8(self, hidden: int, eps: float, scheme: Any) -> Any:
        """RMSNorm and quantize_rows in one."""
        return _build("rms_norm", "rms_norm_int8", hidden, eps, self.sum_factor(scheme))

    def linear_swiglu_int8(self, intermediate: int, columns: int, scheme: Any) -> Any:
        """The gate and up product, SwiGLU and quantize_rows in one."""
        return _build(
            "linear_swiglu",
            "linear_swiglu_int8",
            intermediate,
            columns,
            scheme,
            self.int8_dot,
            self.sum_factor(scheme),
        )

    def sum_factor(self, scheme: Any) -> int:
        """What quantize_rows multiplies sums by beside weights of this scheme."""
        dots = importlib.import_module("minicpm_mlc.ops.cpu.int8_dot").DOTS
        return dots[self.int8_dot].factor(scheme)

    def multiply_add_peak(self) -> Any:
        return _build("peak", "multiply_add_peak", PEAK_VECTORS)

    def bf16_peak(self) -> Any:
        return _build("peak", "bf16_peak", PEAK_VECTORS)

    def int8_peak(self) -> Any:
        return _build("peak", "int8_peak", PEAK_VECTORS, self.int8_dot)

    def read_peak(self) -> Any:
        return _build("peak", "read_peak")


@cache
def _build(module: str, operator: str, *shape: Any, **options: Any) -> Any:
    return getattr(importlib.import_module(f"minicpm_mlc.ops.cpu.{module}"), operator)(
        *shape, **options
    )


@dataclass(frozen=True)
class CpuTarget:
    """One processor family. `features` are LLVM's names of the instruction sets that its library
    needs.
    """

    platform: Platform
    cpu: str
    attributes: tuple[str, ...]
    features: tuple[str, ...]
    device: ClassVar[str] = "cpu"
    has_read_kernel: ClassVar[bool] = True

    @staticmethod
    def missing() -> list[str]:
        """The commands that install what compiling takes and is not here."""
        return missing_to_compile()

    @staticmethod
    def facts() -> dict[str, Any]:
        """This processor as the compiler sees it, and which common levels also run here: what
        `minicpm-mlc devices` tells, ready for JSON.
        """
        native = CpuTarget.of("native")
        present = this_host().features or frozenset()
        levels = {
            name: set(CpuTarget.of(name).features) <= present
            for name in LEVELS[native.platform.machine]
        }
        return {"native": native.cpu, "features": list(native.features), "levels": levels}

    @classmethod
    def of(cls, cpu: str, platform_name: str | None = None) -> CpuTarget:
        """`native`, a level such as x86-64-v3, or any processor that LLVM knows; the platform None
        is Linux on this machine.

        Raises CompileError for a processor that the platform can't have.
        """
        here = platform.machine()
        native = cpu == "native"
        there = PLATFORMS.get(platform_name or here)
        if there is None:
            raise CompileError(
                f"no CPU target for {platform_name or here}; there are {', '.join(PLATFORMS)}"
            )
        if native and there is not PLATFORMS.get(here):
            raise CompileError(
                f"--cpu native: this machine is no {there.triple}; name its processor, such as "
                "--cpu generic"
            )
        name = host_cpu() if native else cpu
        used = _llvm_features(name, there) & FLAGS.keys()
        present = this_host().features
        if not native or present is None:
            return cls(there, name, (), tuple(sorted(used)))
        # a virtual machine may hide what its processor has
        hidden = tuple(f"-{feature}" for feature in sorted(used - present))
        return cls(there, name, hidden, tuple(sorted(used & present)))

    @property
    def triple(self) -> str:
        """LLVM's name of the processor's kind and the system."""
        return self.platform.triple

    @property
    def libraries(self) -> tuple[str, ...]:
        """The files that a bundle gets; the first is the one that Python loads."""
        return self.platform.libraries

    @property
    def traits(self) -> CpuTraits:
        """What its kernels may assume."""
        accumulators = 8 if "avx512f" in self.features else 4
        return CpuTraits(accumulators, self.int8_dot, BF16_DOT in self.features)

    @property
    def kernels(self) -> CpuKernels:
        """The operators, built for this processor."""
        return CpuKernels(
            8 if "avx512f" in self.features else 4, self.int8_dot, BF16_DOT in self.features
        )

    @property
    def int8_dot(self) -> str | None:
        """The feature for linears with int8 activations, None where the processor has none."""
        return next((feature for feature in INT8_DOTS if feature in self.features), None)

    @property
    def no_int8_dot(self) -> str:
        """Why `int8_dot` is None, for a message."""
        return f"{self.cpu} has no int8 dot products"

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it."""
        import tvm

        attributes = {"mattr": list(self.attributes)} if self.attributes else {}
        return tvm.target.Target(
            {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, **attributes}
        )

    def tir_pipeline(self) -> str:
        """The passes that lower its kernels: TVM's own."""
        return "default"

    def describe(self) -> dict[str, Any]:
        """What the manifest records, checked when the bundle is loaded."""
        return {
            "device": self.device,
            "triple": self.triple,
            "cpu": self.cpu,
            "features": list(self.features),
        }

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled to the library of this name, the same bytes each time."""
        executable.export_library(library, fcompile=self.link)

    def link(self, library: str, objects: list[str], **_: Any) -> None:
        """Link TVM's objects, as export_library hands them over."""
        link(self.platform, library, objects)


def host_cpu() -> str:
    """LLVM's name of this machine's processor."""
    from tvm.target import codegen

    return codegen.llvm_get_system_cpu()


def _llvm_features(cpu: str, there: Platform) -> set[str]:
    """The features that LLVM assumes of a processor. Raises CompileError when it doesn't know the
    name.
    """
    import tvm
    from tvm.target import codegen

    generic = tvm.target.Target({"kind": "llvm", "mtriple": there.triple})
    if cpu not in codegen.llvm_get_cpu_archlist(generic):
        examples = (
            "native, x86-64-v3, x86-64-v4"
            if there.machine == "x86_64"
            else "native, generic, cortex-a76"
        )
        raise CompileError(
            f"--cpu {cpu}: LLVM knows no such {there.machine} processor; use for example {examples}"
        )
    target = tvm.target.Target({"kind": "llvm", "mtriple": there.triple, "mcpu": cpu})
    return {str(feature) for feature in codegen.llvm_get_cpu_features(target)}
