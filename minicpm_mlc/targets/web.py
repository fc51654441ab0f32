"""The processor of a web page: WebAssembly with vectors of 128 bits, on one thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.lowering import web_pipeline

SIMD = "simd128"  # in every browser since 2023; LLVM's generic WebAssembly has it not


@dataclass(frozen=True)
class WebTarget(CpuTarget):
    """WebAssembly. Its objects are linked with the engine (compile/engine_build.py), whose loops
    run on the page's worker alone: there is no thread pool.
    """

    @classmethod
    def of(cls, cpu: str, platform_name: str | None = "web") -> WebTarget:
        """Of LLVM's processor of this name, such as generic. Raises CompileError for another
        kind's.
        """
        plain = CpuTarget.of(cpu, platform_name)
        return cls(plain.platform, plain.cpu, (f"+{SIMD}",), (SIMD,))

    def tir_pipeline(self) -> str:
        """The passes that lower its kernels."""
        return web_pipeline()

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled as objects, the same bytes each time."""
        executable.export_library(library, fcompile=self.link)
