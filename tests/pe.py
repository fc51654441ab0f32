"""What a test asks of a Windows library: the PE format, for x86-64.

Offsets and names are those of Microsoft's "PE Format".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

X86_64, DLL = 0x8664, 0x2000
PE32_PLUS = 0x20B
ANY_ADDRESS, NO_EXECUTE = 0x40, 0x100  # DYNAMIC_BASE, NX_COMPAT
RELOCATIONS_STRIPPED = 0x1
EXPORTS, IMPORTS = 0, 1  # data directories


@dataclass(frozen=True)
class PE:
    """`needed`: the libraries that it imports from, with the symbols of each. `flags` are its
    DllCharacteristics, `entry` the address of what runs when it is loaded, 0 for nothing.
    """

    time: int
    entry: int
    flags: int
    relocatable: bool
    needed: dict[str, set[str]]
    exported: set[str]


def read_pe(data: bytes) -> PE:
    """A 64-bit x86 DLL. Raises ValueError for any other file."""
    (start,) = struct.unpack_from("<I", data, 60)
    if data[:2] != b"MZ" or data[start : start + 4] != b"PE\0\0":
        raise ValueError("not a PE file")
    machine, sections, time, _, _, size, characteristics = struct.unpack_from(
        "<HHIIIHH", data, start + 4
    )
    optional = start + 24
    (magic,) = struct.unpack_from("<H", data, optional)
    if (machine, magic) != (X86_64, PE32_PLUS) or not characteristics & DLL:
        raise ValueError("not a 64-bit x86 DLL")
    (entry,) = struct.unpack_from("<I", data, optional + 16)
    (flags,) = struct.unpack_from("<H", data, optional + 70)
    image = _Image(data, optional + size, sections, optional + 112)
    needed = image.imports()
    relocatable = not characteristics & RELOCATIONS_STRIPPED
    return PE(time, entry, flags, relocatable, needed, image.exports())


class _Image:
    """Addresses of a loaded image, read from the file."""

    def __init__(self, data: bytes, sections: int, count: int, directories: int) -> None:
        self._data = data
        self._directories = directories
        self._sections = [
            struct.unpack_from("<IIII", data, sections + 40 * i + 8) for i in range(count)
        ]

    def directory(self, number: int) -> tuple[int, int]:
        """(address, bytes) of a data directory."""
        return struct.unpack_from("<II", self._data, self._directories + 8 * number)

    def imports(self) -> dict[str, set[str]]:
        """Symbols by library."""
        at, found = self.directory(IMPORTS)[0], {}
        while any(entry := self._read("<5I", at)):
            names, name = entry[0], entry[3]
            found[self._text(name)] = set(self._names(names))
            at += 20
        return found

    def exports(self) -> set[str]:
        """Names that others may use."""
        at, size = self.directory(EXPORTS)
        if not size:
            return set()
        count, names = self._read("<I", at + 24)[0], self._read("<I", at + 32)[0]
        return {self._text(self._read("<I", names + 4 * i)[0]) for i in range(count)}

    def _names(self, at: int) -> list[str]:
        found = []
        while (hint := self._read("<Q", at)[0]) and not hint >> 63:
            found.append(self._text(hint + 2))
            at += 8
        return found

    def _text(self, address: int) -> str:
        start = self._offset(address)
        return self._data[start : self._data.index(0, start)].decode()

    def _read(self, form: str, address: int) -> tuple[int, ...]:
        return struct.unpack_from(form, self._data, self._offset(address))

    def _offset(self, address: int) -> int:
        for size, start, raw_size, raw in self._sections:
            if start <= address < start + max(size, raw_size):
                return raw + address - start
        raise ValueError(f"no section holds address {address:#x}")
