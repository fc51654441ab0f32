"""What a test asks of Mach-O: libraries and archives of objects, for arm64."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC, ARM64 = 0xFEEDFACF, 0x0100000C
OBJECT, DYLIB = 1, 6
MACOS, IOS = 1, 2
SYMTAB, LOAD_DYLIB, ID_DYLIB, CODE_SIGNATURE, BUILD_VERSION = 0x2, 0xC, 0xD, 0x1D, 0x32
STAB, EXTERNAL, TYPE, UNDEFINED = 0xE0, 0x01, 0x0E, 0x0


@dataclass(frozen=True)
class MachO:
    """`platform` and `minimum` (major, minor) are the build version's; symbols come without their
    first underscore.
    """

    kind: int
    name: str | None
    needed: list[str]
    platform: int
    minimum: tuple[int, int]
    signed: bool
    undefined: set[str]
    exported: set[str]


def read_mach_o(data: bytes) -> MachO:
    """A 64-bit arm64 Mach-O file. Raises ValueError for any other."""
    magic, processor, _, kind, count, _ = struct.unpack_from("<6I", data)
    if (magic, processor) != (MAGIC, ARM64):
        raise ValueError("not a 64-bit arm64 Mach-O file")
    commands, at = [], 32
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, at)
        commands.append((command, data[at : at + size]))
        at += size

    def of(wanted: int) -> list[bytes]:
        return [body for command, body in commands if command == wanted]

    def text(body: bytes) -> str:
        (start,) = struct.unpack_from("<I", body, 8)
        return body[start:].split(b"\0")[0].decode()

    platform, minimum = struct.unpack_from("<2I", of(BUILD_VERSION)[0], 8)
    symbols = _symbols(data, of(SYMTAB)[0])
    return MachO(
        kind=kind,
        name=next(map(text, of(ID_DYLIB)), None),
        needed=[text(body) for body in of(LOAD_DYLIB)],
        platform=platform,
        minimum=(minimum >> 16, minimum >> 8 & 0xFF),
        signed=bool(of(CODE_SIGNATURE)),
        undefined={name for name, kind in symbols if kind & TYPE == UNDEFINED},
        exported={name for name, kind in symbols if kind & TYPE != UNDEFINED},
    )


def _symbols(data: bytes, command: bytes) -> list[tuple[str, int]]:
    """(name, type) of the external symbols."""
    entries, count, names, _ = struct.unpack_from("<4I", command, 8)
    found = []
    for i in range(count):
        name, kind = struct.unpack_from("<IB", data, entries + 16 * i)
        if kind & EXTERNAL and not kind & STAB:
            start = names + name
            found.append((data[start : data.index(0, start)].decode().removeprefix("_"), kind))
    return found


def read_archive(path: Path) -> dict[str, bytes]:
    """The members of a BSD `ar` archive, without its table of symbols. Raises ValueError for any
    other file.
    """
    data, at, members = path.read_bytes(), 8, {}
    if data[:8] != b"!<arch>\n":
        raise ValueError(f"{path} is not an archive")
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        body = data[at + 60 : at + 60 + size]
        if name.startswith("#1/"):
            length = int(name[3:])
            name, body = body[:length].rstrip(b"\0").decode(), body[length:]
        if not name.startswith("__.SYMDEF"):
            members[name.rstrip("/")] = body
        at += 60 + size + size % 2
    return members
