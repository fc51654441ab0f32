"""Which of a kernel's arguments each global load of its machine code reads: pointers are followed
from the constants that arguments are, through the registers, to the loads' addresses.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from sass import Code, Instruction

FIRST = {"sm_89": 0x160, "sm_90": 0x210}  # where arguments begin among the constants
_HEAD = re.compile(r"__launch_bounds__\(\d+\) (\w+)\(([^)]*)\)")
_CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")
_REGISTER = re.compile(r"\b(U?R\d+)\b")
_ADDRESS = re.compile(r"desc\[UR\d+\]\[(R\d+)(?:\.\w+)?(?:\+(UR\d+))?")
_SIZES = {"int64_t": 8, "double": 8}  # of arguments that are no pointers; others have 4 bytes

Origins = dict[str, frozenset[int]]  # of a register: the constants that are part of it


def pointers(source: str, arch: str) -> dict[str, dict[int, str]]:
    """Of every kernel of a CUDA source: what its pointers point to, by their place among the
    constants.
    """
    found = {}
    for name, arguments in _HEAD.findall(source):
        at, own = FIRST[arch], {}
        for argument in filter(None, map(str.strip, arguments.split(","))):
            kind, size = argument.split()[0], 8 if "*" in argument else 4
            size = _SIZES.get(kind, size)
            at = -(-at // size) * size
            if "*" in argument:
                own[at] = kind.rstrip("*")
            at += size
        found[name] = own
    return found


def stored(kinds: dict[int, str]) -> set[int]:
    """The pointers to what is stored: the bits of a float16 cache, and the words of weights, which
    come before those of their scales.
    """
    words = [place for place, kind in kinds.items() if kind == "uint"]
    return {place for place, kind in kinds.items() if kind == "ushort"} | set(words[:1])


def loads(code: Code, places: set[int]) -> Iterator[Instruction]:
    """The global loads whose address is made of one of the arguments."""
    origins: Origins = defaultdict(frozenset)
    for each in code:  # so that what a loop carries is known where it is read
        _follow(each, origins)
    for each in code:
        if each.base in ("LDG", "LDGSTS") and (place := _ADDRESS.search(each.text)):
            registers = [place[1], _next(place[1]), *filter(None, [place[2]])]
            parts = frozenset[int]().union(*(origins[register] for register in registers))
            if parts & places:
                yield each
        _follow(each, origins)


def _follow(instruction: Instruction, origins: Origins) -> None:
    """What a register is made of behind an instruction."""
    _, _, operands = instruction.text.partition(instruction.opcode)
    first, _, rest = operands.partition(",")
    target = re.fullmatch(r"\s*(U?R\d+)(?:\.\w+)?\s*", first)
    if target is None:
        return
    parts = {int(place, 16) for place in _CONSTANT.findall(rest)}
    if instruction.base in ("LDG", "LDS", "LDSM", "LDL"):  # a number, not an address
        parts = set()
    else:
        parts.update(*(origins[register] for register in _REGISTER.findall(rest)))
    wide = ".64" in instruction.opcode or ".WIDE" in instruction.opcode
    for register in (target[1], *([_next(target[1])] if wide else [])):
        origins[register] = frozenset(parts)


def _next(register: str) -> str:
    kind, number = re.match(r"(U?R)(\d+)", register).groups()  # type: ignore[union-attr]
    return f"{kind}{int(number) + 1}"
