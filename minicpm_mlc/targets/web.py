"""The processor of a web page: WebAssembly with vectors of 128 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.lowering import web_pipeline

SIMD = "simd128"  # in every browser since 2023; LLVM's generic WebAssembly has it not
SHARED = ("atomics", "bulk-memory")  # what a linker wants of objects in memory of several workers
RELAXED = "relaxed-simd"  # of --cpu: with dot products of int8, which not every browser has


@dataclass(frozen=True)
class WebTarget(CpuTarget):
    """WebAssembly. Its objects are linked with the engine (compile/engine_build.py), which brings
    the thread pool.
    """

    @classmethod
    def of(cls, cpu: str, platform_name: str | None = "web") -> WebTarget:
        """Of LLVM's processor of this name, such as generic, or with relaxed vectors. Raises
        CompileError for another kind's.
        """
        plain = CpuTarget.of("generic" if cpu == RELAXED else cpu, platform_name)
        features = (SIMD, RELAXED) if cpu == RELAXED else (SIMD,)
        attributes = tuple(f"+{feature}" for feature in (*features, *SHARED))
        return cls(plain.platform, plain.cpu, attributes, features)

    def tir_pipeline(self) -> str:
        """The passes that lower its kernels."""
        return web_pipeline()

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled as objects, the same bytes each time."""
        executable.export_library(library, fcompile=self.link)
