"""What a test asks of an ELF shared object: machine, needed libraries, symbols."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

AARCH64, X86_64 = 183, 62
DYNAMIC, DYNSYM, NEEDED = 6, 11, 1


@dataclass(frozen=True)
class SharedObject:
    """Names as the dynamic linker sees them."""

    machine: int
    needed: list[str]
    undefined: set[str]
    exported: set[str]


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
        return [(*entry, names) for entry in struct.iter_unpack(layout, data[section[4] : section[4] + section[5]])]

    def text(start: int) -> str:
        return data[start : data.index(0, start)].decode()

    symbols = [(text(names + name), section) for name, _, _, section, _, _, names in entries(DYNSYM, "<IBBHQQ") if name]
    return SharedObject(
        machine=struct.unpack_from("<H", data, 18)[0],
        needed=[text(names + value) for tag, value, names in entries(DYNAMIC, "<QQ") if tag == NEEDED],
        undefined={name for name, section in symbols if section == 0},
        exported={name for name, section in symbols if section},
    )
