"""CUDA C++ to machine code without a GPU: by nvcc, or by NVRTC, which is one library and comes by
pip.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.targets.fatbin import ELF, PTX, Image, pack

# PTX of a later version than the runtime's wants a later driver
GET_NVRTC = 'pip install "nvidia-cuda-nvrtc==13.0.*"'
# the names that TVM's CUDA uses, as its own beginning of a file wants headers that come in other
# packages; and the functions that kernels call by name
PRELUDE = Path(__file__).with_name("cuda_prelude.cuh").read_text()
FIRST_KERNEL = 'extern "C" __global__'
HELPER = "__forceinline__ __device__"  # how TVM begins a function that it wrote for T.ptx
PROBE = FIRST_KERNEL + " void probe() {}"

Compiler = Callable[
    [str, str, bool], bytes
]  # (source, "sm_87", PTX instead of machine code) -> the code


def fat_binary(source: str, archs: tuple[str, ...], compiler: Compiler | None = None) -> bytes:
    """Machine code of TVM's CUDA source for each of `archs`, and PTX of the first for GPUs that are
    none of them.

    Raises CompileError where no compiler is found, or with what it says.
    """
    run = compiler or find_compiler(archs)
    kernels = PRELUDE + without_head(source)
    jobs = [*((arch, False) for arch in archs), (archs[0], True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pack(list(pool.map(lambda job: _image(run, kernels, *job), jobs)))


def without_head(source: str) -> str:
    """TVM's CUDA source from its first helper function on, or from its first kernel."""
    kernel = source.index(FIRST_KERNEL)
    helper = source.find(HELPER, 0, kernel)
    return source[kernel if helper < 0 else helper :]


def _image(run: Compiler, source: str, arch: str, ptx: bool) -> Image:
    code = run(source, arch, ptx)
    sm = int(arch.removeprefix("sm_"))
    if not ptx:
        return Image(ELF, sm, code)
    found = re.search(rb"^\.version (\d+)\.(\d+)", code, re.MULTILINE)
    if not found:
        raise CompileError(
            f"the CUDA compiler gave no PTX for {arch}, but {code[:80]!r}; update it"
        )
    return Image(PTX, sm, code.rstrip(b"\0"), (int(found[1]), int(found[2])))


def has_compiler(archs: tuple[str, ...]) -> bool:
    """True where `fat_binary` finds a compiler for `archs`."""
    return set(archs) <= nvcc_archs() or nvrtc_library() is not None


def find_compiler(archs: tuple[str, ...]) -> Compiler:
    """nvcc where it is there, works and knows all of `archs`; else NVRTC. Raises CompileError
    naming what to install.
    """
    if set(archs) <= nvcc_archs():
        return nvcc
    if not has_compiler(archs):
        raise CompileError(f"no CUDA compiler for {', '.join(archs)} is here; try: {GET_NVRTC}")
    return nvrtc


@cache
def nvcc_archs() -> frozenset[str]:
    """The architectures that the nvcc on the path compiles for; none where there is no nvcc that
    works.

    One that lists them may still fail, for want of a C++ compiler; then a warning says so.
    """
    path = shutil.which("nvcc")
    if path is None:
        return frozenset()
    try:
        result = subprocess.run(
            [path, "--list-gpu-code"], capture_output=True, text=True, check=False
        )
        archs = frozenset(result.stdout.split() if result.returncode == 0 else ())
        nvcc(PROBE, min(archs, default="sm_80"), False)
        return archs
    except (CompileError, OSError) as error:
        logging.getLogger(__name__).warning(
            "%s does not compile, NVRTC is used where it is installed: %s", path, error
        )
        return frozenset()


def nvcc(source: str, arch: str, ptx: bool) -> bytes:
    """Compile with nvcc, in a folder where it finds the same names each time."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "kernels.cu").write_text(source)
        kind = (
            ["-ptx", f"-arch={arch.replace('sm', 'compute')}"]
            if ptx
            else ["-cubin", f"-arch={arch}"]
        )
        command = ["nvcc", "-w", "-O3", *kind, "-o", "kernels.out", "kernels.cu"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            raise CompileError(f"nvcc failed for {arch}: {result.stderr.strip()[-2000:]}")
        return (Path(folder) / "kernels.out").read_bytes()


def nvrtc_library() -> Path | None:
    """NVRTC as its wheel installs it, if it is there; beside it lie its builtins and an alternative
    build.
    """
    folders = (Path(entry) / "nvidia" for entry in sys.path)
    found = (path for folder in folders for path in sorted(folder.glob("*/*/*nvrtc*13*")))
    return next(
        (path for path in found if not re.search(r"builtins|\.alt\.|\.txt$", path.name)), None
    )


@cache
def _load_nvrtc(path: Path) -> ctypes.CDLL:
    """It opens its builtins by name only, which finds them if they are loaded."""
    for builtins in path.parent.glob("*nvrtc-builtins*"):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(path))


def nvrtc(source: str, arch: str, ptx: bool) -> bytes:
    """Compile with NVRTC."""
    path = nvrtc_library()
    assert path, "find_compiler looked for it"
    library = _load_nvrtc(path)
    program = ctypes.c_void_p()
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        ),
        arch,
    )
    try:
        target = arch.replace("sm", "compute") if ptx else arch
        options = [f"--gpu-architecture={target}".encode(), b"--disable-warnings"]
        array = (ctypes.c_char_p * len(options))(*options)
        if library.nvrtcCompileProgram(program, len(options), array):
            log = _read(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program, arch)
            raise CompileError(
                f"NVRTC failed for {arch}: {log.decode(errors='replace').strip()[-2000:]}"
            )
        kind = "PTX" if ptx else "CUBIN"
        return _read(
            getattr(library, f"nvrtcGet{kind}Size"),
            getattr(library, f"nvrtcGet{kind}"),
            program,
            arch,
        )
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(
    size_of: Callable[..., int], read: Callable[..., int], program: ctypes.c_void_p, arch: str
) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)), arch)
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer), arch)
    return buffer.raw


def _check(status: int, arch: str) -> None:
    if status:
        raise CompileError(
            f"NVRTC failed for {arch} with status {status}; install it again: {GET_NVRTC}"
        )
