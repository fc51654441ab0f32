"""CUDA's fat binary: machine code for several architectures, and PTX, in one file of which the
driver takes what fits.

The layout is that of NVIDIA's `fatbinary --create --compress=false`, byte for byte for machine code
(tests/test_cuda.py compares them where the tool is here).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = 0xBA55ED50
VERSION = 1
PTX = 1
ELF = 2
IMAGE_VERSION = 0x101
_HEADER = struct.Struct("<IHHQ")
# kind, version, sizes of header and data; compressed size, place of options; version, sm; name's
# place and length; flags
_IMAGE = struct.Struct("<HHIQIIHHIIIQ16x")
# 64 bits, Linux
_FLAGS = 0x11
_WITH_COMPATIBILITY = 0x1000000
_CUBIN_ABI = (8, 1)  # minor, major of the machine code's version
_COMPATIBILITY = ".nv.compat"  # a section of machine code; NVIDIA's tool repeats it in front of
_COMPATIBLE_FROM = 100  # code for these architectures and later, though sm_90's has one too


@dataclass(frozen=True)
class Image:
    """Code for one architecture: `sm` as in sm_87; `kind` ELF (machine code) or PTX (text, at
    `version` major, minor).
    """

    kind: int
    sm: int
    data: bytes
    version: tuple[int, int] = (0, 0)


def pack(images: list[Image]) -> bytes:
    """The fat binary with these images."""
    body = b"".join(_packed(image) for image in images)
    return _HEADER.pack(MAGIC, VERSION, _HEADER.size, len(body)) + body


def _packed(image: Image) -> bytes:
    repeats = image.kind == ELF and image.sm >= _COMPATIBLE_FROM
    compatibility = _section(image.data, _COMPATIBILITY) if repeats else b""
    options = b""
    if image.kind == PTX or compatibility:
        options = (
            struct.pack("<II", _IMAGE.size + 8, len(compatibility)) + b"\0" + compatibility
        )  # ptxas' options: none
        options += bytes(-len(options) % 8)
    data = image.data + (b"\0" if image.kind == PTX else b"")
    data += bytes(-len(data) % 8)
    minor, major = image.version[::-1] if image.kind == PTX else _CUBIN_ABI
    header = _IMAGE.size + len(options)
    place = _IMAGE.size if options else 0
    flags = _FLAGS | (_WITH_COMPATIBILITY if compatibility else 0)
    fields = (
        image.kind,
        IMAGE_VERSION,
        header,
        len(data),
        0,
        place,
        minor,
        major,
        image.sm,
        0,
        0,
        flags,
    )
    return _IMAGE.pack(*fields) + options + data


def _section(code: bytes, wanted: str) -> bytes:
    """A section of a 64-bit ELF file; nothing where it has none."""
    (at,) = struct.unpack_from("<Q", code, 40)
    size, count, names = struct.unpack_from("<HHH", code, 58)
    sections = [struct.unpack_from("<IIQQQQ", code, at + i * size) for i in range(count)]
    for name, _, _, _, place, length in sections:
        start = sections[names][4] + name
        if code[start : code.index(0, start)] == wanted.encode():
            return code[place : place + length]
    return b""


def unpack(data: bytes) -> list[Image]:
    """The images of a fat binary that was packed without compression. Raises ValueError for
    anything else.
    """
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[:3] != (MAGIC, VERSION, _HEADER.size):
        raise ValueError("not a CUDA fat binary")
    images = []
    at = _HEADER.size
    while at < len(data):
        kind, _, header, size, compressed, _, minor, major, sm, *_ = _IMAGE.unpack_from(data, at)
        if compressed or at + header + size > len(data):
            raise ValueError(f"an image of the fat binary at byte {at} is compressed or cut off")
        code = data[at + header : at + header + size]
        images.append(
            Image(
                kind,
                sm,
                code.rstrip(b"\0") if kind == PTX else code,
                (major, minor) if kind == PTX else (0, 0),
            )
        )
        at += header + size
    return images
