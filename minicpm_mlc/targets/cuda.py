"""The CUDA target: kernels as machine code for the architectures that were asked for; never as
source.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.cuda_compiler import GET_NVRTC, fat_binary, has_compiler
from minicpm_mlc.targets.embed import Reader, string, with_changed_imports
from minicpm_mlc.targets.gpu_target import GpuTarget

# code for sm_80 also runs on sm_86; PTX of the first that is asked for serves all later ones
ARCHS = {
    "sm_80": "A100, A30; GeForce RTX 30",
    "sm_87": "Jetson Orin",
    "sm_89": "L4, L40; GeForce RTX 40",
    "sm_90": "H100, H200",
    "sm_100": "B100, B200",
    "sm_120": "GeForce RTX 50, RTX PRO Blackwell",
}


@dataclass(frozen=True)
class CudaTarget(GpuTarget):
    """NVIDIA GPUs of the architectures `archs`, the oldest first."""

    archs: tuple[str, ...]
    device: ClassVar[str] = "cuda"
    architectures: ClassVar[dict[str, str]] = ARCHS
    limits: ClassVar[dict[str, int]] = {
        "max_num_threads": 1024,
        "thread_warp_size": 32,
        "max_shared_memory_per_block": 49152,
    }

    @classmethod
    def beside(cls, host: CpuTarget, arch: str | None) -> CudaTarget:
        """Beside a processor, for the architectures of `--arch`. Raises CompileError as
        parse_archs does.
        """
        return cls(host, parse_archs(arch))

    @classmethod
    def missing(cls) -> list[str]:
        """The commands that install what compiling takes and is not here."""
        return super().missing() + ([] if has_compiler(tuple(ARCHS)) else [GET_NVRTC])

    @property
    def traits(self) -> GpuTraits:
        """What its kernels may assume."""
        warps = {"f16_tiles": True, "f32_tiles": True, "int8_tiles": True, "quads": True}
        return GpuTraits(int8_dot="dp4a", normalises=True, meets=True, **warps)

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it."""
        import tvm

        # TVM's own compilation needs a driver, or leaves CUDA source in the library; so it always
        # leaves the source here
        os.environ["TVM_COMPILE_FORCE_FALLBACK"] = "1"
        target = {"kind": self.device, "arch": self.archs[0], **self.limits}
        return tvm.target.Target(target, host=self.host.tvm_target())

    def describe(self) -> dict[str, Any]:
        """What the manifest records."""
        return super().describe() | {"archs": list(self.archs)}

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled to the library of this name, machine code in it. Raises
        CompileError as fat_binary does.
        """
        pack = with_changed_imports(self._compiled, self.host.platform)
        executable.export_library(library, fcompile=self.link, fpack_imports=pack)

    def _compiled(self, kind: str, module: bytes) -> tuple[str, bytes]:
        """TVM's CUDA module with a fat binary in place of its source: format, functions, code."""
        if kind != "cuda":
            return kind, module
        start = module.find(b"\n#ifdef __CUDACC_RTC__")
        form = Reader(module).string()
        if form != b"cuda" or start < 8 or Reader(module[start - 8 :]).string() != module[start:]:
            raise CompileError(
                f"TVM gave CUDA kernels as {form.decode()}, not as source; use apache-tvm 0.27"
            )
        functions = module[8 + len(form) : start - 8]
        return kind, string(b"fatbin") + functions + string(
            fat_binary(module[start:].decode(), self.archs)
        )


def parse_archs(text: str | None) -> tuple[str, ...]:
    """The architectures that `--arch` names: a list with commas, or all. Raises CompileError naming
    those that exist.
    """
    wanted = list(ARCHS) if text in (None, "all") else text.split(",")
    if unknown := [arch for arch in wanted if arch not in ARCHS]:
        raise CompileError(f"--arch {unknown[0]}: choose all, or of {', '.join(ARCHS)}")
    return tuple(arch for arch in ARCHS if arch in wanted)
