"""Loops in the assembly text that LLVM writes: instructions, products, traffic with the stack."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

LABEL = re.compile(r"(\.?L[\w$]+):")
JUMP = re.compile(r"(?:j[a-z]+|b(?:\.[a-z]+)?|cbn?z\s+\w+,|tbn?z\s+\w+,\s*\d+,)\s+(\.?L[\w$]+)$")
REGISTER = re.compile(r"%[xyz]mm(\d+)|\b[vqds](\d+)\b")
# AT&T syntax names the target last. Scratch arrays, which are there by intent, are indexed by a
# register; what the allocator keeps on the stack lies at a fixed place. Of arm64 those of vectors
# count: addresses of rows far apart are reloaded there, which costs no vector instruction.
X86_STACK = re.compile(r"-?\d*\(%[re]sp\)")
X86_STORE = re.compile(r"v?mov\w*\s+[%$][^(]*, -?\d*\(%[re]sp\)")
ARM_STACK = re.compile(r"(?P<store>st)?(?:ld)?(?P<pair>u?r|p)\s+[qds]\d.*\[sp(?:, -?\d+)?\]")
ROUNDING = ("vrndscale", "vroundps", "frintn", "frintx", "frinti")  # only exponentials have them
# multiplications and additions of each instruction, by the width of its registers in bits
INT8 = {"vpmaddubsw": 8, "vpdpbusd": 8, "sdot": 8, "usdot": 8, "smmla": 4}
FLOAT32 = {"vfmadd": 32, "vfnmadd": 32, "fmla": 32, "vdpbf16ps": 16}


@dataclass(frozen=True)
class Loop:
    """An innermost loop. `products` are multiplications, of all lanes: those of int8, where it has
    any. An instruction that both computes and reads the stack counts as a load.
    """

    instructions: int
    products: int
    int8: bool
    stores: int
    loads: int
    registers: int
    multiplies: int  # the instructions that make the products
    rounding: bool  # an exponential is among it

    @property
    def stack(self) -> int:
        """Stores to the stack and loads from it."""
        return self.stores + self.loads

    @property
    def products_per_instruction(self) -> float:
        """What the processor gets done in an instruction."""
        return self.products / self.instructions


def inner_loops(assembly: str) -> list[Loop]:
    """The innermost loops with products, in the order of the text."""
    lines = [line.split("#", 1)[0].split("//", 1)[0].strip() for line in _marked(assembly)]
    labels = {found[1]: at for at, line in enumerate(lines) if (found := LABEL.match(line))}
    ends: dict[int, int] = {}
    for at, line in enumerate(lines):
        found = JUMP.match(line)
        if found and labels.get(found[1], at) < at:
            ends[labels[found[1]]] = at  # the last jump back is the loop's end
    spans = sorted(ends.items())
    inner = [
        (start, end)
        for start, end in spans
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in spans)
    ]
    loops = (_loop(lines[start : end + 1]) for start, end in inner)
    return [loop for loop in loops if loop.products]


def _marked(assembly: str) -> list[str]:
    """Lines without comments that could be taken for code; immediates of arm64 begin with #."""
    return [re.sub(r"#(-?\d|:)", r"\1", line) for line in assembly.splitlines()]


def _loop(lines: list[str]) -> Loop:
    code = [line for line in lines if re.match(r"[a-z{]", line) and not line.endswith(":")]
    counted = Counter[str]()
    used = set()
    for line in code:
        name = line.removeprefix("{vex}").split()[0]
        counted["store"] += _stores(line)
        counted["load"] += _loads(line)
        int8, float32 = (_products(line, name, kinds) for kinds in (INT8, FLOAT32))
        counted.update(int8=int8, float32=float32, multiplies=int8 + float32 > 0)
        counted["rounding"] += name.startswith(ROUNDING)
        used |= {int(a or b) for a, b in REGISTER.findall(line)}
    return Loop(
        len(code),
        counted["int8"] or counted["float32"],
        counted["int8"] > 0,
        counted["store"],
        counted["load"],
        len(used),
        counted["multiplies"],
        counted["rounding"] > 0,
    )


def _products(line: str, name: str, kinds: dict[str, int]) -> int:
    bits = next((bits for kind, bits in kinds.items() if name.startswith(kind)), 0)
    return _width(line, name) // bits if bits else 0


def _width(line: str, name: str) -> int:
    """Bits of the registers that an instruction computes with; 32 of scalars."""
    if name.endswith("ss") and name != "vdpbf16ps":
        return 32
    for mark, width in (("%zmm", 512), ("%ymm", 256), ("%xmm", 128)):
        if mark in line:
            return width
    return 128 if re.search(r"\.(16b|4s|8h)", line) else 32


def _stores(line: str) -> int:
    if X86_STACK.search(line):
        return int(bool(X86_STORE.match(line)))
    found = ARM_STACK.match(line)
    return _moved(found) if found and found["store"] else 0


def _loads(line: str) -> int:
    if X86_STACK.search(line):
        return int(not X86_STORE.match(line))
    found = ARM_STACK.match(line)
    return _moved(found) if found and not found["store"] else 0


def _moved(found: re.Match[str]) -> int:
    """Registers that an arm64 load or store moves."""
    return 2 if found["pair"] == "p" else 1
