"""What building the engine takes on each kind of system, beside what it takes on all."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.targets.cpu import THREAD_POOL
from minicpm_mlc.targets.link import PLATFORMS

WEB = PLATFORMS["web"].zig
# the functions that a page calls; "chat" and "generate" say themselves that they are
WEB_CALLS = (
    *("malloc", "free"),
    *(f"minicpm_{name}" for name in ("open", "close", "error", "info", "stats", "free")),
    *(f"minicpm_{name}" for name in ("tokenize", "prompt", "truncate", "save", "cancel")),
    "minicpm_web_use_workers",
    # of a worker that shares the memory: its stack, its own variables, and what it does
    *("__stack_pointer", "__tls_size", "__wasm_init_tls", "minicpm_pool_work"),
)
_WEB_PROCESSOR = "-mcpu=generic+simd128+exception_handling+atomics+bulk_memory"
_WEB_MEMORY = (  # bytes that page/engine.js makes it of, and the most that it grows to
    *("-Wl,--shared-memory", "-Wl,--import-memory"),
    *("-Wl,--initial-memory=67108864", "-Wl,--max-memory=4294901760"),
)
# LLVM's, as zig brings them: how exceptions are thrown and caught in WebAssembly
_EXCEPTIONS = (
    "libcxxabi/src/cxa_exception.cpp",
    "libcxxabi/src/cxa_personality.cpp",
    "libunwind/src/Unwind-wasm.c",
)
_EXCEPTION_HEADERS = (
    "libcxxabi/include",
    "libcxxabi/src",
    "libunwind/include",
    "libunwind/src",
    "libcxx/src",
)


@dataclass(frozen=True)
class EngineSystem:
    """`flags` compile and `link` links, into a program, or with `library` into a library, which is
    called by `name`.

    `headers` stand before all others. `own` are our sources for this system: each stands for the
    engine's or TVM's of its name, where there is one. `sources`, compiled with `source_flags` too,
    are the system's part of the runtime's archive.
    """

    flags: tuple[str, ...]
    link: tuple[str, ...]
    library: tuple[str, ...]
    name: str
    headers: tuple[Path, ...] = ()
    own: tuple[Path, ...] = ()
    sources: tuple[Path, ...] = ()
    source_flags: tuple[str, ...] = ()

    def kept(self, sources: list[Path]) -> list[Path]:
        """Those that none of our own stands for."""
        replaced = {path.name for path in self.own}
        return [path for path in sources if path.name not in replaced]


ELF = EngineSystem(
    flags=("-fPIC",),
    link=("-O2", "-s", "-Wl,--gc-sections", "-Wl,--build-id=none"),
    library=("-shared",),
    name="lib{}.so",
)


def system_for(target: str, native: Path) -> EngineSystem:
    """Of zig's name of a system; `native` is the folder of our sources. Raises CompileError."""
    return _web(native / "web") if target == WEB else ELF


def _web(folder: Path) -> EngineSystem:
    zig = zig_folder()
    return EngineSystem(
        flags=(
            _WEB_PROCESSOR,
            "-fwasm-exceptions",
            "-D_WASI_EMULATED_MMAN",
            *("-Dmmap=minicpm_mmap", "-Dmunmap=minicpm_munmap"),  # system.cc's
            "-D_WASI_EMULATED_GETPID",
        ),
        link=(
            _WEB_PROCESSOR,
            *("-O2", "-s", "-Wl,--gc-sections", "-lwasi-emulated-getpid"),
            *(*_WEB_MEMORY, "-Wl,-z,stack-size=4194304"),
        ),
        library=("-mexec-model=reactor", *(f"-Wl,--export={name}" for name in WEB_CALLS)),
        name="{}.wasm",
        headers=(folder / "include",),
        own=tuple(path for path in sorted((folder / "src").glob("*.cc")) if path.stem != "web"),
        sources=(THREAD_POOL, *(zig / name for name in _EXCEPTIONS)),
        source_flags=(
            *(f"-I{zig / name}" for name in _EXCEPTION_HEADERS),
            "-D_LIBCPP_BUILDING_LIBRARY",
            *("-D_LIBCXXABI_HAS_NO_THREADS", "-D_LIBUNWIND_HAS_NO_THREADS"),
            "-D_LIBUNWIND_HIDE_SYMBOLS",
        ),
    )


def zig_folder() -> Path:
    """The libraries' sources that zig brings. Raises CompileError where it isn't installed."""
    spec = importlib.util.find_spec("ziglang")
    if not spec or not spec.submodule_search_locations:
        raise CompileError("zig is not installed; try: pip install ziglang")
    return Path(spec.submodule_search_locations[0]) / "lib"
