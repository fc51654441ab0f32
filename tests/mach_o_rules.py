"""What macOS asks of a library before it maps it: rules of the Mach-O format, of arm64's pages, and
of its signature.

Structures are those of Apple's mach-o/loader.h and, of the signature, xnu's osfmk/kern/cs_blobs.h;
the rules of segments are those that dyld checks (Header::validSemanticsSegments).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

HEADER = 32  # bytes
PAGE = 16384  # bytes, of Apple silicon
SEGMENT_64, SYMTAB, DYSYMTAB, SIGNATURE = 0x19, 0x2, 0xB, 0x1D
LINKED = {  # commands whose second and third words are the place and size of data in __LINKEDIT
    SIGNATURE: "code signature",
    0x26: "function starts",
    0x29: "data in code",
    0x80000033: "exports trie",
    0x80000034: "chained fixups",
}
DYLD_INFO = (0x22, 0x80000022)  # five such pairs
READ, WRITE, EXECUTE = 0x1, 0x2, 0x4
RIGHTS = {"__TEXT": READ | EXECUTE, "__LINKEDIT": READ}  # of all others: READ | WRITE
EMBEDDED_SIGNATURE, CODE_DIRECTORY, SHA256 = 0xFADE0CC0, 0xFADE0C02, 2


@dataclass(frozen=True)
class Segment:
    """Where a part of the file is mapped; `sections` are (name, address, size, file offset,
    alignment).
    """

    name: str
    address: int
    size: int
    at: int
    bytes: int
    may: int  # protection at most
    is_now: int
    sections: tuple[tuple[str, int, int, int, int], ...]


def broken_rules(data: bytes) -> list[str]:
    """What is wrong with a library, in words; nothing for one that macOS maps."""
    commands = list(_commands(data))
    segments = [_segment(body) for command, body in commands if command == SEGMENT_64]
    wrong = [*_of_commands(data, commands), *_of_segments(data, segments)]
    if [segments[0].name, segments[-1].name] != ["__TEXT", "__LINKEDIT"]:
        return [*wrong, "the first segment is not __TEXT, or the last not __LINKEDIT"]
    (told,) = struct.unpack_from("<I", data, 20)
    if segments[0].at or segments[0].bytes < HEADER + told:
        wrong.append("__TEXT doesn't hold the header and the commands")
    wrong += _of_linked_data(commands, segments[-1])
    return wrong + _of_signature(data, commands)


def _commands(data: bytes) -> Iterator[tuple[int, bytes]]:
    (count,) = struct.unpack_from("<I", data, 16)
    at = HEADER
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, at)
        yield command, data[at : at + size]
        at += size


def _of_commands(data: bytes, commands: list[tuple[int, bytes]]) -> list[str]:
    (told,) = struct.unpack_from("<I", data, 20)
    wrong = [
        f"command {number:#x} has {len(body)} bytes" for number, body in commands if len(body) % 8
    ]
    if sum(len(body) for _, body in commands) != told:
        wrong.append("the commands' sizes don't add up to the header's")
    return wrong


def _segment(body: bytes) -> Segment:
    name, address, size, at, length, may, is_now, count = struct.unpack_from("<16s4Q3I", body, 8)
    sections = []
    for i in range(count):
        section, _, start, long, offset, power = struct.unpack_from(
            "<16s16s2Q2I", body, 72 + 80 * i
        )
        sections.append((section.rstrip(b"\0").decode(), start, long, offset, 1 << power))
    plain = name.rstrip(b"\0").decode()
    return Segment(plain, address, size, at, length, may, is_now, tuple(sections))


def _of_segments(data: bytes, segments: list[Segment]) -> list[str]:
    wrong = []
    for segment in segments:
        name = segment.name
        if segment.address % PAGE or segment.at % PAGE:
            wrong.append(f"{name} doesn't begin at a page")
        if segment.bytes > segment.size or segment.at + segment.bytes > len(data):
            wrong.append(f"{name} is longer than its memory or the file")
        if not segment.may == segment.is_now == RIGHTS.get(name, READ | WRITE):
            wrong.append(f"{name} has other rights than such a segment")
        wrong += [f"{name},{each}" for each in _outside(segment)]
    for one, other in pairwise(segments):
        if one.address + one.size > other.address or one.at + one.bytes > other.at:
            wrong.append(f"{one.name} and {other.name} overlap")
    return wrong


def _outside(segment: Segment) -> Iterator[str]:
    for name, start, size, offset, alignment in segment.sections:
        if not segment.address <= start <= start + size <= segment.address + segment.size:
            yield f"{name} is outside of its segment"
        if start % alignment:
            yield f"{name} is not aligned"
        if offset and offset - segment.at != start - segment.address:
            yield f"{name} is elsewhere in the file than in memory"


def _of_linked_data(commands: list[tuple[int, bytes]], linkedit: Segment) -> list[str]:
    parts: list[tuple[str, int, int]] = []
    for number, body in commands:
        if number in LINKED:
            parts.append((LINKED[number], *struct.unpack_from("<2I", body, 8)))
        elif number in DYLD_INFO:
            words = struct.unpack_from("<10I", body, 8)
            parts += [("dyld's lists", *words[i : i + 2]) for i in range(0, 10, 2)]
        elif number == SYMTAB:
            symbols, count, names, size = struct.unpack_from("<4I", body, 8)
            parts += [("symbols", symbols, 16 * count), ("names", names, size)]
        elif number == DYSYMTAB:
            at, count = struct.unpack_from("<2I", body, 56)
            parts.append(("indirect symbols", at, 4 * count))
    parts = sorted((part for part in parts if part[2]), key=lambda part: part[1])
    end = linkedit.at + linkedit.bytes
    wrong = [
        f"{name} outside of __LINKEDIT"
        for name, at, size in parts
        if not linkedit.at <= at <= at + size <= end
    ]
    for (one, at, size), (other, following, _) in pairwise(parts):
        if at + size > following:
            wrong.append(f"{one} and {other} overlap")
    return wrong


def _of_signature(data: bytes, commands: list[tuple[int, bytes]]) -> list[str]:
    """Every page's hash, as macOS compares it when the page is first touched."""
    places = [
        struct.unpack_from("<2I", body, 8) for number, body in commands if number == SIGNATURE
    ]
    if len(places) != 1:
        return ["there is not one code signature"]
    at, size = places[0]
    if at % 16 or at + size != len(data):
        return ["the code signature is not aligned, or not the file's end"]
    blob = data[at : at + size]
    magic, _, count = struct.unpack_from(">3I", blob)
    slots = [struct.unpack_from(">2I", blob, 12 + 8 * i) for i in range(count)]
    places = [offset for _, offset in slots if blob[offset : offset + 4] == _big(CODE_DIRECTORY)]
    if magic != EMBEDDED_SIGNATURE or not places:
        return ["the code signature has no code directory"]
    return _of_pages(data[:at], blob[places[0] :])


def _of_pages(code: bytes, directory: bytes) -> list[str]:
    hashes, _, _, count, limit = struct.unpack_from(">5I", directory, 16)
    length, kind, _, power = struct.unpack_from("4B", directory, 36)
    if (limit, kind, length) != (len(code), SHA256, 32):
        return ["the signature doesn't cover the file up to itself by SHA-256"]
    pages = [code[at : at + (1 << power)] for at in range(0, limit, 1 << power)]
    if len(pages) != count:
        return [f"the signature has {count} hashes for {len(pages)} pages"]
    return [
        f"page {i} has another hash than its signature"
        for i, page in enumerate(pages)
        if directory[hashes + 32 * i :][:32] != hashlib.sha256(page).digest()
    ]


def _big(number: int) -> bytes:
    return struct.pack(">I", number)
