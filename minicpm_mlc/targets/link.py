"""Where a library runs, and how it is linked for there: by zig, which brings a linker for every
platform by pip.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.host import this_host
from minicpm_mlc.bundle.supported import check_system

_ELF = ("-Wl,-z,undefs", "-Wl,--build-id=none")
# newer phones map pages of 16 KiB
_ANDROID = (
    "-Wl,-z,defs",
    "-Wl,--build-id=none",
    "-Wl,-z,max-page-size=16384",
    "-Wl,--hash-style=both",
    "-Wl,-soname,model.so",
)
# what the thread pool of a CPU's library asks the system for
_THREADS = (
    "pthread_create",
    "pthread_detach",
    "pthread_self",
    "sched_yield",
    "syscall",
    "clock_gettime",
    "__register_atfork",
)
_MACH_O = ("-Wl,-undefined,dynamic_lookup", "-Wl,-install_name,@rpath/model.dylib")
_PE = (
    "-Wl,--no-entry",  # nothing is to be done when a process loads it
    "-Wl,-Brepro",  # a hash in the place of the time
)
ARM64_LEVELS = ("generic", "cortex-a76", "neoverse-n1")
X86_LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")


@dataclass(frozen=True)
class Platform:
    """A system on a kind of processor. `machine` is Linux's name of that kind, `triple` LLVM's,
    `zig` the linker's.

    `libraries` are the files that a bundle gets: shared ones, and static ones (an archive, or a
    .tar of objects) for apps that take no others. A shared one names the libraries in `needed`,
    with their symbols that it may use; where there are none, TVM's runtime and the C library are
    found in the process that loads it. `levels` are processors that `--cpu` names besides this
    machine's, the oldest first.
    """

    machine: str
    triple: str
    zig: str
    flags: tuple[str, ...]
    libraries: tuple[str, ...] = ("model.so",)
    needed: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    levels: tuple[str, ...] = ARM64_LEVELS


PLATFORMS = {
    "x86_64": Platform(
        "x86_64",
        "x86_64-unknown-linux-gnu",
        "x86_64-linux-gnu.2.17",
        _ELF,
        levels=X86_LEVELS,
    ),
    "aarch64": Platform("aarch64", "aarch64-unknown-linux-gnu", "aarch64-linux-gnu.2.17", _ELF),
    "android": Platform(
        "aarch64",
        "aarch64-linux-android24",
        "aarch64-linux-android",
        _ANDROID,
        ("model.so", "model.tar"),
        {
            "libtvm_ffi.so": (
                "TVMFFIErrorSetRaisedFromCStrParts",
                "TVMFFIErrorMoveFromRaised",
                "TVMFFIErrorSetRaised",
                "TVMFFIObjectDecRef",
            ),
            "libc.so": ("memcpy", "memset", "memmove", *_THREADS),
        },
    ),
    "macos": Platform(
        "aarch64",
        "arm64-apple-macos13.0",
        "aarch64-macos.13.0",
        _MACH_O,
        ("model.dylib",),
        levels=("apple-m1", "apple-m2", "apple-m4"),
    ),
    "windows": Platform(
        "x86_64",
        "x86_64-pc-windows-gnu",
        "x86_64-windows-gnu",
        _PE,
        ("model.dll",),
        {
            "tvm_ffi.dll": (
                "TVMFFIErrorMoveFromRaised",
                "TVMFFIErrorSetRaised",
                "TVMFFIErrorSetRaisedFromCStrParts",
                "TVMFFIObjectDecRef",
            ),
            "kernel32.dll": (
                "CloseHandle",
                "CreateThread",
                "GetCurrentThreadId",
                "QueryPerformanceCounter",
                "QueryPerformanceFrequency",
                "SwitchToThread",
            ),
            "api-ms-win-core-synch-l1-2-0.dll": ("WaitOnAddress", "WakeByAddressAll"),
            "msvcrt.dll": ("memcpy", "memmove", "memset"),
        },
        X86_LEVELS,
    ),
    "ios": Platform("aarch64", "arm64-apple-ios16.0", "aarch64-ios.16.0", (), ("model.a",)),
    "web": Platform(
        "wasm32",
        "wasm32-unknown-wasi",
        "wasm32-wasi",
        (),
        ("model.tar",),
        levels=("generic", "relaxed-simd"),
    ),
}

_HERE = {  # the system and processor of this machine -> its platform
    ("linux", "x86_64"): "x86_64",
    ("linux", "aarch64"): "aarch64",
    ("darwin", "aarch64"): "macos",
    ("windows", "x86_64"): "windows",
}


def platform_here() -> Platform:
    """The platform of this machine. Raises UnsupportedSystemError where TVM has no
    wheels for it.
    """
    check_system()
    host = this_host()
    return PLATFORMS[_HERE[host.system, host.machine]]


def is_static(library: str) -> bool:
    """True for what an app links in: TVM finds its modules in the app by their prefix, not in a
    file.
    """
    return library.endswith((".a", ".tar"))


def link(platform: Platform, library: str, objects: list[str]) -> None:
    """Link objects into the library of this name; the same objects give the same bytes.

    Raises CompileError when zig fails, as it does for a symbol that no needed library has.
    """
    if library.endswith(".tar"):
        return _pack(library, objects)
    if library.endswith(".a"):
        return zig("ar", "rcsD", library, *objects)
    with TemporaryDirectory() as folder:
        needed = [
            _stub(platform, Path(folder) / name, symbols)
            for name, symbols in platform.needed.items()
        ]
        command = ["cc", "-target", platform.zig, "-shared", "-nostdlib", "-s", *platform.flags]
        if library.endswith(".dll"):  # zig writes an import library too, which nobody needs
            command.append(f"-Wl,--out-implib,{folder}/import.lib")
        zig(*command, "-o", library, *objects, *needed)


def compile_object(target: str, source: Path, result: Path) -> None:
    """Compile a C file, which uses no C library's headers, for zig's name of a system.

    Raises CompileError when zig fails.
    """
    flags = ("-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
    # for Android, clang calls atomics of a library that isn't linked; the code is the same else
    system = target.replace("-android", "-musl")
    zig("cc", "-target", system, "-c", *flags, "-o", str(result), str(source))


def zig(*arguments: str) -> None:
    """Run zig. Raises CompileError with what it says."""
    result = subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise CompileError(
            f"zig {arguments[0]} failed: {result.stderr.strip()[-2000:]}; try: pip install ziglang"
        )


def _stub(platform: Platform, path: Path, symbols: Iterable[str]) -> str:
    """An empty library of this name and with these symbols, in place of the one on the device."""
    if path.suffix == ".dll":
        return _import_library(path, symbols)
    source = path.with_suffix(".s")
    source.write_text(
        "".join(f".globl {name}\n.type {name}, %function\n{name}:\n" for name in symbols)
    )
    zig(
        "cc",
        "-target",
        platform.zig,
        "-shared",
        "-nostdlib",
        f"-Wl,-soname,{path.name}",
        "-o",
        str(path),
        str(source),
    )
    return str(path)


def _import_library(path: Path, symbols: Iterable[str]) -> str:
    """What stands for a DLL of Windows when another one is linked that uses it."""
    definition, library = path.with_suffix(".def"), path.with_suffix(".lib")
    definition.write_text("\n".join([f"LIBRARY {path.name}", "EXPORTS", *symbols, ""]))
    zig("dlltool", "-m", "i386:x86-64", "-d", str(definition), "-l", str(library))
    return str(library)


def _pack(archive: str, objects: list[str]) -> None:
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(map(Path, objects)):
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            with open(path, "rb") as file:
                tar.addfile(entry, file)
