"""The modules that a compiled library carries as data, changed before it is linked.

TVM keeps them in one symbol: the length, the tree of imports, then each module's kind and, but for
the host's code, its bytes. Numbers are little-endian, 64 bits wide; strings begin with their
length.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minicpm_mlc.targets.link import Platform, zig

SYMBOL = "__tvm_ffi__library_bin"
HOST = b"_lib"  # the library's own functions

Change = Callable[
    [str, bytes], tuple[str, bytes]
]  # (kind, bytes) of a module -> what is stored in its place


_OBJECT = """
__asm__(".section .rodata,\\"a\\"\\n.globl {name}\\n.type {name}, %object\\n.p2align 6\\n"
        "{name}:\\n.incbin \\"{data}\\"\\n.size {name}, .-{name}\\n.previous");
"""
_REGISTERED = """
extern const unsigned char {name}[];
int TVMFFIEnvModRegisterSystemLibSymbol(const char*, void*);
__attribute__((constructor)) static void register_imports(void) {{
  TVMFFIEnvModRegisterSystemLibSymbol("{name}", (void*){name});
}}
"""


def with_changed_imports(change: Change, platform: Platform) -> Callable[..., str]:
    """What export_library takes as `fpack_imports`, for platforms with ELF."""

    def pack(module: Any, is_system_library: bool, prefix: str, folder: str) -> str:
        data, source, result = (
            str(Path(folder) / name) for name in ("imports.bin", "imports.c", f"{prefix}devc.o")
        )
        Path(data).write_bytes(changed(_packed(module), change))
        text = _OBJECT + (_REGISTERED if is_system_library else "")
        Path(source).write_text(text.format(name=prefix + SYMBOL, data=data))
        zig("cc", "-target", platform.zig, "-c", "-O2", "-g0", "-fPIC", "-o", result, source)
        return result

    return pack


def _packed(module: Any) -> bytes:
    """A module's imports as TVM packs them; it gives them out as the text of a C array."""
    import tvm

    text = tvm.get_global_func("runtime.ModulePackImportsToC")(module, False, "")
    array = re.search(r"= \{(.*?)\}", text, re.DOTALL)
    assert array, "TVM packs imports as a C array"
    return bytes.fromhex(array[1].replace("0x", "").replace(",", ""))


def changed(packed: bytes, change: Change) -> bytes:
    """The packed imports with every module but the host's as `change` returns it."""
    reader = Reader(packed)
    reader.number()  # the length of what follows
    for _ in range(2):  # the tree: rows' starts, and children
        reader.take(8 * reader.number())
    body = packed[8 : reader.at]
    while reader.at < len(packed):
        kind = reader.string()
        if kind == HOST:
            body += string(kind)
        else:
            name, content = change(kind.decode(), reader.string())
            body += string(name.encode()) + string(content)
    return string(body)


class Reader:
    """Reads numbers and strings one after the other. Raises ValueError where the data ends too
    early.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if self.at + count > len(self.data):
            raise ValueError(f"packed imports end within {count} bytes at {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        """The next number."""
        return struct.unpack("<Q", self.take(8))[0]

    def string(self) -> bytes:
        """The next string."""
        return self.take(self.number())


def string(content: bytes) -> bytes:
    """Bytes behind their length."""
    return struct.pack("<Q", len(content)) + content
