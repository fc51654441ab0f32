"""Metal and CUDA without their GPUs: TVM's device is this machine's memory, and the kernels' source
is compiled for its CPU.

`gpu_shim/` has the headers that stand in for Metal's and CUDA's. Importing this module sets TVM up
so, where it has no such device.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tvm
import tvm_ffi
from gpu_cases import compiled_together
from grid_cases import Case, all_cases

from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.operator import Operator
from minicpm_mlc.targets.embed import Reader
from minicpm_mlc.targets.gpu_target import GpuTarget

SHIM = Path(__file__).with_name("gpu_shim")
HANDLE = 3  # DLPack's code of pointers
TURNS = count()
HEAD = """
extern "C" void TVMFFIErrorSetRaisedFromCStr(const char*, const char*);
struct Any { int32_t type, size; int64_t value; };
"""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a module: DLPack's type codes of its arguments, and what a launch gives."""

    name: str
    codes: list[int]
    launch: list[str]

    @property
    def buffers(self) -> list[int]:
        return [i for i, code in enumerate(self.codes) if code == HANDLE]

    @property
    def scalars(self) -> list[int]:
        return [i for i, code in enumerate(self.codes) if code != HANDLE]

    def wrapped(self, source: str, passed: list[str], backwards: bool) -> str:
        """C++ with `source`, and the function by which TVM launches the kernel with the arguments
        `passed`.
        """
        assert self.launch == ["blockIdx.x", "threadIdx.x"], self.launch
        packed = "".join(f"scalars[{slot}] = values[{i}];" for slot, i in enumerate(self.scalars))
        n = len(self.codes)
        return f"""
namespace n_{self.name} {{
{source}
static int64_t values[{n + 2}], scalars[{len(self.scalars) + 1}];
static void body(unsigned group, unsigned thread_number) {{ {self.name}({", ".join(passed)}); }}
}}
extern "C" int __tvm_ffi_{self.name}(void*, const Any* arguments, int, Any*) {{
  using namespace n_{self.name};
  for (int i = 0; i < {n + 2}; ++i) values[i] = arguments[i].value;
  {packed}
  if (shim::run(values[{n}], values[{n + 1}], {str(backwards).lower()}, body)) return 0;
  TVMFFIErrorSetRaisedFromCStr(
      "RuntimeError", "{self.name}: threads wait at a barrier that others don't reach");
  return -1;
}}
"""


def _pointer(i: int) -> str:
    return f"shim::Pointer{{(void*)values[{i}]}}"


def metal_source(kernel: Kernel, source: str, backwards: bool) -> str:
    """A kernel in MSL: its buffers, then one struct with the scalars, 8 bytes each, then the place
    of the thread.
    """
    scalars = [f"*({kernel.name}_args_t*)scalars"] if kernel.scalars else []
    passed = [*map(_pointer, kernel.buffers), *scalars, "group", "thread_number"]
    return kernel.wrapped(source, passed, backwards)


def cuda_source(kernel: Kernel, backwards: bool) -> str:
    """A kernel in CUDA: its arguments in order."""
    passed = [
        _pointer(i) if i in kernel.buffers else f"values[{i}]" for i in range(len(kernel.codes))
    ]
    return kernel.wrapped("", passed, backwards)


def read_kernels(reader: Reader) -> list[Kernel]:
    """The kernels that a module has, as TVM writes them behind its format."""
    kernels = []
    for _ in range(reader.number()):
        name = reader.string().decode()
        assert reader.string().decode() == name
        codes = [reader.take(4)[0] for _ in range(reader.number())]
        kernels.append(
            Kernel(name, codes, [reader.string().decode() for _ in range(reader.number())])
        )
        reader.take(4 * reader.number())
    return kernels


def load_metal(module: bytes) -> Any:
    """What TVM's loader of Metal modules does, here."""
    reader, backwards = Reader(module), next(TURNS) % 2 == 1
    assert reader.string() == b"metal", "kernels as source"
    kernels = {kernel.name: kernel for kernel in read_kernels(reader)}
    sources = [(reader.string().decode(), reader.string().decode()) for _ in range(reader.number())]
    parts = [metal_source(kernels[name], source, backwards) for name, source in sources]
    return _load("#include <metal_stdlib>" + HEAD + "".join(parts))


def load_cuda(module: bytes) -> Any:
    """The same for CUDA modules whose code is the source: a test leaves it there in place of
    machine code.
    """
    reader, backwards = Reader(module), next(TURNS) % 2 == 1
    reader.string()
    kernels = read_kernels(reader)
    source = reader.string().decode().replace('extern "C" __global__', "__global__")
    return _load(
        "#include <cuda.h>"
        + HEAD
        + source
        + "".join(cuda_source(kernel, backwards) for kernel in kernels)
    )


def _load(source: str) -> Any:
    flags = [
        "-shared",
        "-fPIC",
        "-O1",
        "-mf16c",
        "-std=c++17",
        "-nostdlib",
        "-fno-exceptions",
        "-fno-sanitize=all",
    ]
    flags += [
        "-ffp-contract=off",
        "-Wno-unknown-attributes",
        "-Wno-ignored-attributes",
        "-Wl,-z,undefs",
        f"-I{SHIM}",
    ]
    with TemporaryDirectory() as folder:
        text, library = Path(folder) / "kernels.cc", Path(folder) / "kernels.so"
        text.write_text(source)
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(library), str(text)],
            check=True,
        )
        return tvm_ffi.load_module(str(library))


def install() -> None:
    """Give TVM a Metal and a CUDA device."""
    memory = tvm.get_global_func("device_api.cpu")
    for device, load in (("metal", load_metal), ("cuda", load_cuda)):
        if not tvm.get_global_func(f"device_api.{device}", allow_missing=True):
            tvm_ffi.register_global_func(f"device_api.{device}", lambda: memory())
            tvm_ffi.register_global_func(f"ffi.Module.load_from_bytes.{device}", load)


install()


def is_kept(record: Operator) -> bool:
    """Whether its kernels are compiled here. Those of int8 activations are long: each scheme goes
    by one matrix, which has a residual, and SwiGLU by three kinds of values.
    """
    if isinstance(record, LinearSwigluInt8):
        return record.scheme.name in ("w4", "w5k", "w8")
    return not isinstance(record, LinearInt8) or record.residual or record.scheme.name == "w4"


class Grid:
    """The operator grid's cases for a GPU."""

    def __init__(self, target: GpuTarget) -> None:
        self.target = target
        self.cases = [
            case
            for family in all_cases().values()
            for case in family
            if case.kernel.is_there(target) and is_kept(case.kernel.record)
        ]
        self.kernels = list(dict.fromkeys(case.kernel for case in self.cases))
        self.operators = sorted({kernel.operator for kernel in self.kernels})

    @cached_property
    def calls(self) -> dict[Any, Any]:
        """All in one library."""
        named = {f"{kernel.operator}_{i}": kernel for i, kernel in enumerate(self.kernels)}
        funcs = {name: kernel.build(self.target) for name, kernel in named.items()}
        built = compiled_together(funcs, self.target.device, self.target)
        return {kernel: built[name] for name, kernel in named.items()}

    def check(self, operator: str) -> None:
        """The operator's cases against its definition."""
        cases: list[Case] = [case for case in self.cases if case.kernel.operator == operator]
        assert cases
        for number, case in enumerate(cases):
            error = case.error(self.calls[case.kernel])
            allowed = case.kernel.record.rounded_limit(case.allowed, self.target.traits)
            assert error <= allowed, (
                number,
                case.kernel,
                [array.shape for array in case.arguments],
            )
