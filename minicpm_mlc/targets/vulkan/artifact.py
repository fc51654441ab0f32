"""How SPIR-V gets into a compiled library: as the bytes that the Vulkan runtime's module loader
reads.

TVM has no module for SPIR-V that Python could make, so its compiler is given one of constants that
holds the bytes, and what is stored in the library is of the kind "vulkan".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.targets.embed import Reader, string
from minicpm_mlc.targets.vulkan.kernel import Shader, lower
from minicpm_mlc.targets.vulkan.values import scalar

KIND = "vulkan"
CARRIER, CONSTANT = (
    "const_loader",
    "minicpm.vulkan",
)  # TVM's kind of module, our name of the constant in it
TENSOR_HEADER = 40  # bytes before the length of a tensor's data, of one dimension
POINTER = (3, 64)  # DLPack's code of pointers, and bits
CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's of numbers


@dataclass(frozen=True)
class Kernel:
    """A shader and how it is launched: the types of its arguments, and what the extents behind them
    mean.
    """

    arguments: list[tuple[int, int]]  # (DLPack's code, bits)
    launch_tags: list[str]
    shader: Shader


@cache
def register() -> None:
    """Make TVM call `build` for Vulkan, unless it has a code generator of its own."""
    import tvm
    import tvm_ffi

    tvm_ffi.register_error("CompileError", CompileError)  # it goes through TVM's C++
    if tvm.get_global_func("target.build.vulkan", allow_missing=True) is None:
        tvm.register_global_func("target.build.vulkan", build)


def build(module: Any, target: Any) -> Any:
    """The kernels of a module, in their carrier."""
    import numpy as np
    import tvm

    kernels = {name: _kernel(name, function, target) for name, function in _functions(module)}
    content = tvm.runtime.tensor(np.frombuffer(packed(kernels), np.uint8))
    return tvm.get_global_func("ffi.Module.create.const_loader")({CONSTANT: content}, {})


def _functions(module: Any) -> list[tuple[str, Any]]:
    return sorted(
        (str(function.attrs["global_symbol"]), function) for _, function in module.functions_items()
    )


def _kernel(name: str, function: Any, target: Any) -> Kernel:
    tags = [str(tag) for tag in function.attrs["tirx.kernel_launch_params"]]
    return Kernel(
        [_code(parameter) for parameter in function.params], tags, lower(name, function, target)
    )


def _code(parameter: Any) -> tuple[int, int]:
    if type(parameter.ty).__name__ == "PointerType":
        return POINTER
    t = scalar(str(parameter.ty.dtype))
    return CODES[t.kind], t.bits


def packed(kernels: dict[str, Kernel]) -> bytes:
    """The format's name, each kernel's signature, each kernel's words; in the order of their names,
    lengths first.
    """
    signatures = b"".join(
        _text(name) + _signature(name, kernel) for name, kernel in kernels.items()
    )
    shaders = b"".join(_text(name) + _shader(kernel.shader) for name, kernel in kernels.items())
    count = struct.pack("<Q", len(kernels))
    return _text(KIND) + count + signatures + count + shaders


def _signature(name: str, kernel: Kernel) -> bytes:
    arguments = b"".join(struct.pack("<BBH", code, bits, 1) for code, bits in kernel.arguments)
    tags = b"".join(map(_text, kernel.launch_tags))
    tensor_maps = struct.pack("<Q", 0)
    return b"".join(
        [
            _text(name),
            struct.pack("<Q", len(kernel.arguments)),
            arguments,
            struct.pack("<Q", len(kernel.launch_tags)),
            tags,
            tensor_maps,
        ]
    )


def _shader(shader: Shader) -> bytes:
    return struct.pack(f"<IQ{len(shader.words)}I", shader.uniform, len(shader.words), *shader.words)


def _text(text: str) -> bytes:
    return string(text.encode())


def unwrapped(kind: str, content: bytes) -> tuple[str, bytes]:
    """A module of a library as it is stored: what the carrier carries, others as they are."""
    if kind != CARRIER:
        return kind, content
    reader = Reader(content)
    if reader.number() != 1 or reader.string() != CONSTANT.encode():
        return kind, content
    reader.number()  # tensors: one
    reader.take(TENSOR_HEADER)
    return KIND, reader.string()
