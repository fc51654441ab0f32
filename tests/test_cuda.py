"""CUDA without a GPU: the kernels' source on this processor through the shim, and the machine code
that bundles hold.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tvm
from elf import CUDA, read_object
from shim_cases import Grid
from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.ops.attend import AttendDecode
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.gpu.kernel import kernel, registers, workgroups
from minicpm_mlc.targets import cuda, cuda_compiler, get_target
from minicpm_mlc.targets.cuda_compiler import (
    GET_NVRTC,
    PRELUDE,
    fat_binary,
    has_compiler,
    nvcc,
    nvrtc,
    without_head,
)
from minicpm_mlc.targets.fatbin import ELF, PTX, Image, pack, unpack

DEMO = Path(__file__).parents[1] / "examples" / "demo_model" / "MiniCPM4.1-demo"
ARCHS = ("sm_87", "sm_120")
HAS_DEVICE = Path("/dev/nvidia0").exists()
needs_compiler = pytest.mark.skipif(
    not has_compiler(ARCHS), reason=f"no CUDA compiler: {GET_NVRTC}"
)
GRID = Grid(get_target("cuda"))
SOURCE = (
    'extern "C" __global__ void __launch_bounds__(64) twice(float* x, int64_t n) { '
    "x[threadIdx.x] *= n; }"
)


def nvidia_tool(name: str) -> str | None:
    """A program of the toolkit: on the path, or beside nvcc, which says where it is."""
    nvcc_path = shutil.which("nvcc")
    if shutil.which(name) or nvcc_path is None:
        return shutil.which(name)
    dry = subprocess.run(
        [nvcc_path, "--dryrun", "-x", "cu", "-"], stdin=subprocess.DEVNULL, capture_output=True
    )
    here = re.search(rb"_HERE_=(\S+)", dry.stderr)
    return shutil.which(name, path=here[1].decode()) if here else None


@pytest.fixture
def source_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries get the source in place of machine code, for the shim."""
    monkeypatch.setattr(cuda, "fat_binary", lambda source, _: without_head(source).encode())


@pytest.mark.skipif(HAS_DEVICE, reason="CUDA itself is here")
@pytest.mark.parametrize("operator", GRID.operators)
def test_kernels_equal_their_definitions(operator: str, source_stays: None):
    GRID.check(operator)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The demo's, for two architectures."""
    path = tmp_path_factory.mktemp("cuda") / "bundle"
    compile_model(DEMO, path, device="cuda", arch=",".join(ARCHS), attention="dense")
    return (path / "model.so").read_bytes()


@needs_compiler
def test_a_library_holds_machine_code_and_ptx_but_no_source(library: bytes):
    assert b"__global__" not in library and b"threadIdx" not in library.replace(b"threadIdx.x", b"")
    start = library.index(b"\x50\xed\x55\xba")
    size = int.from_bytes(library[start + 8 : start + 16], "little")
    *codes, ptx = unpack(library[start : start + 16 + size])
    assert [(image.kind, image.sm) for image in (*codes, ptx)] == [(ELF, 87), (ELF, 120), (PTX, 87)]
    for image in codes:
        code = read_object(image.data)
        assert code.machine == CUDA and code.flags >> 8 & 0xFF == image.sm
        assert all(name.startswith(".nv.reservedSmem") for name in code.undefined)  # the driver's
        kernels = {"linear_int8_kernel", "attend_decode_kernel", "norm_linear_int8_kernel"}
        assert kernels <= code.defined
    assert b".target sm_87" in ptx.data and b".entry linear_int8_kernel" in ptx.data


@needs_compiler
@pytest.mark.skipif(not shutil.which("ptxas"), reason="no ptxas")
@pytest.mark.parametrize("arch", ["sm_90", "sm_120"])
def test_ptx_is_accepted_for_later_gpus(library: bytes, arch: str, tmp_path: Path):
    start = library.index(b"\x50\xed\x55\xba")
    size = int.from_bytes(library[start + 8 : start + 16], "little")
    (tmp_path / "kernels.ptx").write_bytes(unpack(library[start : start + 16 + size])[-1].data)
    subprocess.run(
        ["ptxas", f"-arch={arch}", "kernels.ptx", "-o", "kernels.cubin"], cwd=tmp_path, check=True
    )


@needs_compiler
@pytest.mark.parametrize("compiler", [nvcc, nvrtc])
def test_each_compiler_gives_the_same_bytes_again_or_says_what_is_wrong(compiler):
    there = (
        set(ARCHS) <= cuda_compiler.nvcc_archs()
        if compiler is nvcc
        else cuda_compiler.nvrtc_library()
    )
    if not there:
        pytest.skip(f"no {compiler.__name__}")
    first = fat_binary(SOURCE, ARCHS, compiler)
    assert first == fat_binary(SOURCE, ARCHS, compiler)
    assert all(
        "twice" in read_object(image.data).defined for image in unpack(first) if image.kind == ELF
    )
    with pytest.raises(CompileError, match=r'failed for sm_87: .*"missing" is undefined'):
        fat_binary(SOURCE.replace("*= n", "= missing(n)"), ARCHS, compiler)


@pytest.mark.skipif(
    not (nvidia_tool("fatbinary") and shutil.which("nvcc")), reason="no CUDA toolkit"
)
@pytest.mark.parametrize("arch", cuda.ARCHS)
def test_a_fat_binary_is_what_nvidias_tool_writes(arch: str, tmp_path: Path):
    """For every architecture that `--arch` names."""
    code = nvcc(PRELUDE + SOURCE, arch, False)
    images = [Image(ELF, int(arch.removeprefix("sm_")), code)]
    arguments = [f"--image3=kind=elf,sm={image.sm},file={image.sm}" for image in images]
    for image in images:
        (tmp_path / str(image.sm)).write_bytes(image.data)
    subprocess.run(
        [str(nvidia_tool("fatbinary")), "--create=all", "--compress=false", "-64", *arguments],
        cwd=tmp_path,
        check=True,
    )
    assert pack(images) == (tmp_path / "all").read_bytes()


def test_attention_asks_for_memory_that_does_not_grow_with_the_context():
    """A larger workspace in a later step is another one, and what was recorded has the old one."""
    record = AttendDecode(16, 1, 128, F16)
    lines = build(record, get_target("cuda", arch="sm_90").traits).script().splitlines()
    asked = [line for line in lines if "alloc_buffer" in line and "scope" not in line]
    most = re.search(r"alloc_buffer\(\((v_\d+), n, 16, 128\)\)", asked[0])
    assert most and all(f"({most[1]}, n, 16" in line for line in asked)
    splits = next(line for line in lines if f"{most[1]}: T.let" in line)
    assert re.search(r"\bn\b", splits) and not re.search(r"\bp\b", splits)


@needs_compiler
def test_the_functions_that_tvm_writes_for_ptx_stay_before_the_kernels():
    def emit(_: Any, x: Any, out: Any) -> None:
        with workgroups(1, 32) as (_, thread):
            rounded = registers(1, "uint32")
            T.evaluate(T.ptx["cvt.rna.tf32.f32"](rounded[0], x[thread]))
            T.buffer_store(out, rounded[0], [thread])

    func = kernel("rounded", {"x": ("float32", 32), "out": ("uint32", 32)}, emit)
    target = get_target("cuda", arch="sm_87")
    module = tvm.IRModule({"rounded": func.with_attr("global_symbol", "rounded")})
    built = tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline())
    source = built.mod.imports[0].inspect_source()
    assert cuda_compiler.HELPER in without_head(source)
    code = unpack(fat_binary(source, ("sm_87",)))[0]
    assert "rounded_kernel" in read_object(code.data).defined


def test_a_fat_binary_is_read_back_and_a_damaged_one_refused():
    images = [Image(ELF, 87, bytes(64)), Image(PTX, 87, b".version 9.0\n", (9, 0))]
    data = pack(images)
    assert unpack(data) == images
    for damaged in (data[:-8], b"PK" + data[2:]):
        with pytest.raises(ValueError, match="fat binary"):
            unpack(damaged)


NO_HOST_COMPILER = """#!/bin/sh
[ "$1" = --list-gpu-code ] && echo sm_87 && echo sm_120 && exit
echo "nvcc fatal   : Failed to preprocess host compiler properties." >&2
exit 1
"""


@pytest.mark.parametrize("script", [NO_HOST_COMPILER, "no program"])
def test_an_nvcc_that_does_not_compile_gives_way_to_nvrtc_and_it_is_said(
    script, tmp_path, monkeypatch, caplog
):
    (tmp_path / "nvcc").write_text(script)
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(
        cuda_compiler, "nvcc_archs", cuda_compiler.nvcc_archs.__wrapped__
    )  # what it found before is kept
    monkeypatch.setattr(cuda_compiler, "nvrtc_library", lambda: tmp_path)
    assert cuda_compiler.find_compiler(ARCHS) is nvrtc
    assert f"{tmp_path}/nvcc does not compile, NVRTC is used where it is installed: " in caplog.text
    assert script == "no program" or "Failed to preprocess host compiler properties" in caplog.text
    monkeypatch.setattr(cuda_compiler, "nvrtc_library", lambda: None)
    assert not has_compiler(ARCHS)


def test_without_a_compiler_the_command_that_gets_one_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_compiler, "nvcc_archs", frozenset)
    monkeypatch.setattr(cuda_compiler, "nvrtc_library", lambda: None)
    with pytest.raises(
        CompileError,
        match=r"no CUDA compiler for sm_87, sm_120 is here; try: pip install .nvidia-cuda-nvrtc",
    ):
        fat_binary(SOURCE, ARCHS)
