"""native/engine as CMake builds it with a compiler of this machine, under sanitizers. With
MINICPM_SANITIZED=1 all tests of the engine run it so (test_engine_sanitizers.py).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from minicpm_mlc.base.files import cache_folder
from minicpm_mlc.compile.engine_build import native_folder, wheel_folders

SANITIZED = bool(os.environ.get("MINICPM_SANITIZED"))
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
ENGINE = native_folder() / "engine"


def sanitized_program(
    main: Path | None = None,
    compiler: str = "g++",
    flags: Iterable[str] = SANITIZERS,
    link: Iterable[str] = (),
) -> Path:
    """minicpm-run, or another program over the engine. What did not change since the last call is
    not compiled again; it lies in the user's cache, for each checkout.
    """
    main = main or ENGINE / "tools" / "minicpm-run.cc"
    checkout = hashlib.sha256(str(ENGINE).encode()).hexdigest()[:8]
    build = cache_folder() / "engine-sanitized" / f"{compiler}-{checkout}"
    build.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{build}.lock"):
        _archives(build, compiler, flags)
        program = build / main.stem
        newer = [path.stat().st_mtime for path in (main, *build.glob("**/*.a"))]
        if not program.exists() or program.stat().st_mtime < max(newer):
            _linked(program, main, compiler, [*flags, *link])
        return program


def _archives(build: Path, compiler: str, flags: Iterable[str]) -> None:
    configure = ["cmake", "-S", str(ENGINE), "-B", str(build), "-DCMAKE_BUILD_TYPE=None"]
    configure += [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_CXX_FLAGS={' '.join(flags)}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True, capture_output=True)
    making = ["cmake", "--build", str(build), "-j2", "--target", "minicpm"]
    subprocess.run(making, check=True, capture_output=True)


def _linked(program: Path, main: Path, compiler: str, flags: list[str]) -> None:
    headers = [f"-isystem{folder / 'include'}" for folder in wheel_folders().values()]
    own = [f"-I{ENGINE / name}" for name in ("include", "src")]
    defined = ["-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_FFI_CMAKE_LITTLE_ENDIAN=1"]
    archive = str(program.parent / "runtime/libminicpm_tvm.a")
    tvm = ["-Wl,--whole-archive", archive, "-Wl,--no-whole-archive"]
    command = [compiler, "-std=c++17", *flags, *own, *headers, *defined, "-rdynamic", str(main)]
    command += [str(program.parent / "libminicpm.a"), *tvm, "-lpthread", "-ldl"]
    subprocess.run([*command, "-o", str(program)], check=True)
