"""The CPU target: which processor to compile for, what it needs at run time, and how its library is
linked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.installed import missing_to_compile
from minicpm_mlc.bundle.host import FLAGS, this_host
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.targets.link import PLATFORMS, Platform, compile_object, link, platform_here
from minicpm_mlc.targets.lowering import cpu_pipeline

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

BF16_DOT = "avx512bf16"  # the feature with dot products of bfloat16
# features with int8 dot products, the fastest first
INT8_DOTS = ("avx512vnni", "avxvnni", "avx2", "i8mm", "dotprod", "relaxed-simd", "simd128")
# processors that LLVM takes, and names on a Mac, but doesn't list -> as it lists them
LLVM_ALIASES = {"apple-m1": "apple-a14", "apple-m2": "apple-a15", "apple-m3": "apple-a16"}
THREAD_POOL = Path(__file__).parent / "thread_pool" / "pool.c"


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
        present = this_host().features
        if present is None:  # the system doesn't tell: what LLVM says of the processor
            present = native.features
        levels = {
            name: set(CpuTarget.of(name).features) <= set(present)
            for name in native.platform.levels
        }
        return {"native": native.cpu, "features": list(native.features), "levels": levels}

    @classmethod
    def of(cls, cpu: str, platform_name: str | None = None) -> CpuTarget:
        """`native`, a level such as x86-64-v3, or any processor that LLVM knows; the platform None
        is this machine's.

        Raises CompileError for a processor that the platform can't have.
        """
        here = platform_here()
        native = cpu == "native"
        there = PLATFORMS[platform_name] if platform_name else here
        if native and there is not here:
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
        """The passes that lower its kernels."""
        return cpu_pipeline()

    def read_kernel(self) -> PrimFunc:
        """READ_KERNEL of its libraries."""
        from minicpm_mlc.ops.cpu.speed_limits import read_peak

        return read_peak()

    def describe(self) -> dict[str, Any]:
        """What the manifest records, checked when the bundle is loaded."""
        return {
            "device": self.device,
            "triple": self.triple,
            "cpu": self.cpu,
            "features": list(self.features),
        }

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled to the library of this name, with the thread pool that its loops
        run on; the same bytes each time.
        """
        executable.export_library(library, fcompile=self._link_with_pool)

    def _link_with_pool(self, library: str, objects: list[str], **_: Any) -> None:
        with TemporaryDirectory() as folder:
            pool = Path(folder) / "thread_pool.o"
            compile_object(self.platform.zig, THREAD_POOL, pool)
            link(self.platform, library, [*objects, str(pool)])

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
    if LLVM_ALIASES.get(cpu, cpu) not in codegen.llvm_get_cpu_archlist(generic):
        raise CompileError(
            f"--cpu {cpu}: LLVM knows no such {there.machine} processor; use for example native, "
            f"{', '.join(there.levels)}"
        )
    target = tvm.target.Target({"kind": "llvm", "mtriple": there.triple, "mcpu": cpu})
    return {str(feature) for feature in codegen.llvm_get_cpu_features(target)}
