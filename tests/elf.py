"""What a test asks of ELF shared objects and objects: machine, needed libraries, symbols."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

AARCH64, X86_64, CUDA = 183, 62, 190
SYMTAB, DYNAMIC, DYNSYM = 2, 6, 11  # sections
NEEDED, LOAD = 1, 1  # dynamic entries, segments


@dataclass(frozen=True)
class SharedObject:
    """Names as the dynamic linker sees them. `page`: the largest page, in bytes, whose multiples
    all segments can lie at.
    """

    machine: int
    needed: list[str]
    undefined: set[str]
    exported: set[str]
    page: int


def read_shared_object(path: Path) -> SharedObject:
    """A 64-bit little-endian ELF shared object. Raises ValueError for any other file."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 16) != (3,):
        raise ValueError(f"{path} is not a 64-bit little-endian ELF shared object")
    (at,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQII", data, at + i * size) for i in range(count)]

    def entries(kind: int, layout: str) -> list[tuple]:
        section = next(s for s in sections if s[1] == kind)
        names = sections[section[6]][4]  # the linked string table's offset
        return [
            (*entry, names)
            for entry in struct.iter_unpack(layout, data[section[4] : section[4] + section[5]])
        ]

    def text(start: int) -> str:
        return data[start : data.index(0, start)].decode()

    symbols = [
        (text(names + name), section)
        for name, _, _, section, _, _, names in entries(DYNSYM, "<IBBHQQ")
        if name
    ]
    return SharedObject(
        machine=struct.unpack_from("<H", data, 18)[0],
        needed=[
            text(names + value) for tag, value, names in entries(DYNAMIC, "<QQ") if tag == NEEDED
        ],
        undefined={name for name, section in symbols if section == 0},
        exported={name for name, section in symbols if section},
        page=min(align for kind, _, _, _, _, _, _, align in _segments(data) if kind == LOAD),
    )


def _segments(data: bytes) -> list[tuple[int, ...]]:
    (at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return [struct.unpack_from("<IIQQQQQQ", data, at + i * size) for i in range(count)]


@dataclass(frozen=True)
class Object:
    """An ELF file of any kind: its machine, flags, and the symbols that others see: those it has,
    those it wants.
    """

    machine: int
    flags: int
    defined: set[str]
    undefined: set[str]


def read_object(data: bytes) -> Object:
    """A 64-bit little-endian ELF file with a table of symbols. Raises ValueError for any other
    file.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    at, flags = struct.unpack_from("<QI", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQII", data, at + i * size) for i in range(count)]
    table = next(section for section in sections if section[1] == SYMTAB)
    names = sections[table[6]][4]
    symbols = struct.iter_unpack("<IBBHQQ", data[table[4] : table[4] + table[5]])
    seen = [
        (data[names + s[0] : data.index(0, names + s[0])].decode(), s[3])
        for s in symbols
        if s[1] >> 4
    ]
    return Object(
        machine=struct.unpack_from("<H", data, 18)[0],
        flags=flags,
        defined={name for name, section in seen if section},
        undefined={name for name, section in seen if not section},
    )
