"""The CPU target: which processor to compile for, what it needs at run time, and how its library is
linked.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.host import FLAGS, this_host
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.targets.link import PLATFORMS, Platform, link

PEAK_VECTORS = (
    10  # independent multiply-adds that hide their latency and fit 32 registers of 16 lanes
)
BF16_DOT = "avx512bf16"  # the feature with dot products of bfloat16
INT8_DOTS = (
    "avx512vnni",
    "avxvnni",
    "avx2",
    "i8mm",
    "dotprod",
)  # features with int8 dot products, the fastest first


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

    @property
    def attention(self) -> dict[str, Any]:
        """What attention is built for. Accumulators: two vectors for each scalar that is loaded,
        where there are registers.
        """
        return {
            "tile_vectors": 16 if self.accumulators >= 8 else self.accumulators,
            "bf16_dot": self.bf16_dot,
        }

    def attend_prefill(self, *shape: Any) -> Any:
        return _build("attend", "attend_prefill", *shape, **self.attention)

    def attend_decode(self, *shape: Any) -> Any:
        return _build("attend", "attend_decode", *shape, **self.attention)

    def attend_blocks(self, *shape: Any, **options: Any) -> Any:
        return _build("attend_blocks", "attend_blocks", *shape, **self.attention, **options)

    def attend_tree(self, *shape: Any) -> Any:
        return _build("attend_tree", "attend_tree", *shape, **self.attention)

    def attend_tree_blocks(self, *shape: Any) -> Any:
        return _build("attend_tree", "attend_tree_blocks", *shape, **self.attention)

    def score_blocks(self, *shape: Any, **options: Any) -> Any:
        return _build(
            "score_blocks", "score_blocks", *shape, tile_vectors=self.accumulators, **options
        )

    def score_tree(self, *shape: Any) -> Any:
        return _build("score_tree", "score_tree", *shape, tile_vectors=self.accumulators)

    def path_means(self, *shape: Any) -> Any:
        return _build("path_means", "path_means", *shape)

    def move_rows(self, *shape: Any) -> Any:
        return _build("move_rows", "move_rows", *shape)

    def segment_means(self, *shape: Any, **options: Any) -> Any:
        return _build("segment_means", "segment_means", *shape, **options)

    def select_blocks(self, *shape: Any) -> Any:
        return _build("select_blocks", "select_blocks", *shape)

    def multiply_add_peak(self) -> Any:
        return _build("peak", "multiply_add_peak", PEAK_VECTORS)

    def bf16_peak(self) -> Any:
        return _build("peak", "bf16_peak", PEAK_VECTORS)

    def int8_peak(self) -> Any:
        return _build("peak", "int8_peak", PEAK_VECTORS, self.int8_dot)

    def read_peak(self) -> Any:
        return _build("peak", "read_peak")

    def rope_append(self, *shape: Any, **options: Any) -> Any:
        return _build("rope", "rope_append", *shape, **options)


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
    device: str = "cpu"

    @classmethod
    def of(cls, cpu: str, platform_name: str | None = None) -> CpuTarget:
        """`native`, a level such as x86-64-v3, or any processor LLVM knows; the platform None is
        Linux on this machine.

        Raises CompileError for a processor that the platform can't have.
        """
        here, native = platform.machine(), cpu == "native"
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
        hidden = tuple(
            f"-{f}" for f in sorted(used - present)
        )  # a virtual machine may hide what its processor has
        return cls(there, name, hidden, tuple(sorted(used & present)))

    @property
    def triple(self) -> str:
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
        return CpuKernels(
            8 if "avx512f" in self.features else 4, self.int8_dot, BF16_DOT in self.features
        )

    @property
    def int8_dot(self) -> str | None:
        """The feature for linears with int8 activations, None where the processor has none."""
        return next((feature for feature in INT8_DOTS if feature in self.features), None)

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
