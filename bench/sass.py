"""Machine code of NVIDIA GPUs as nvdisasm prints it: instructions, loops, widths of loads.

An instruction's encoding says what the hardware waits for: cycles before the next one (`stall`),
the scoreboard that its result (`sets`) or its reading of registers (`reads`) is told by, and those
that it waits for (`waits`, a mask).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

NONE = 7  # of scoreboards
GET_NVDISASM = "pip install nvidia-cuda-nvdisasm"
_FUNCTION = re.compile(r"^\.text\.(\w+):$")
_LABEL = re.compile(r"^(\.L_x_\d+):$")
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?) ;\s+/\* 0x[0-9a-f]{16} \*/$")
_SECOND = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/$")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_PREDICATE = re.compile(r"^@!?U?P[T\d]+\s+")


@dataclass
class Instruction:
    """`target`: the place in the function that a branch goes to."""

    text: str
    stall: int = 1
    sets: int = NONE
    reads: int = NONE
    waits: int = 0
    target: int | None = None

    @property
    def opcode(self) -> str:
        """With its suffixes, without a predicate."""
        return _PREDICATE.sub("", self.text).split()[0]

    @property
    def base(self) -> str:
        """Without suffixes."""
        return self.opcode.split(".")[0]

    @property
    def conditional(self) -> bool:
        """Whether it may do nothing."""
        return bool(
            _PREDICATE.match(self.text) or re.search(r"BRA(\.DIV|(\.\w+)* !?U?P)", self.text)
        )

    @property
    def bytes(self) -> int:
        """Of a load or store of one thread."""
        suffixes = self.opcode.split(".")
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((widths[s] for s in suffixes if s in widths), 4)


Code = list[Instruction]


def nvdisasm() -> str:
    """The program, on the path or as its wheel installs it. Raises SystemExit without it."""
    folders = [Path(entry) / "nvidia" / "cu13" / "bin" for entry in sys.path]
    found = shutil.which("nvdisasm") or next(
        (str(f / "nvdisasm") for f in folders if (f / "nvdisasm").is_file()), None
    )
    if found is None:
        raise SystemExit(f"nvdisasm is not here; try: {GET_NVDISASM}")
    return found


def disassembled(cubin: Path) -> dict[str, Code]:
    """The functions of a cubin by name."""
    command = [nvdisasm(), "-c", "-hex", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nvdisasm failed: {done.stderr.strip()[-500:]}")
    return parsed(done.stdout)


def parsed(text: str) -> dict[str, Code]:
    """What nvdisasm -c -hex prints."""
    functions: dict[str, Code] = {}
    labels: dict[str, int] = {}
    code: Code = []
    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            code = functions[found[1]] = []
        elif found := _LABEL.match(line):
            labels[found[1]] = len(code)
        elif found := _LINE.match(line):
            code.append(Instruction(found[2].strip()))
        elif (found := _SECOND.match(line)) and code:
            _decode(code[-1], int(found[1], 16))
    for code in functions.values():
        for instruction in code:
            if found := _TARGET.search(instruction.text):
                instruction.target = labels.get(found[1])
    return functions


def _decode(instruction: Instruction, word: int) -> None:
    """From the second half of an encoding."""
    instruction.stall, instruction.sets = word >> 41 & 15, word >> 46 & 7
    instruction.reads, instruction.waits = word >> 49 & 7, word >> 52 & 63


def loops(code: Code) -> list[tuple[int, int]]:
    """(first, last) instruction of every loop, by its first one; the endless one behind the end is
    none.
    """
    edges = (
        (each.target, i)
        for i, each in enumerate(code)
        if each.base == "BRA" and each.target is not None and each.target < i
    )
    return sorted(edges)


def innermost(code: Code) -> list[tuple[int, int]]:
    """The loops without another one inside."""
    found = loops(code)
    return [
        (a, b)
        for a, b in found
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in found)
    ]


def counts(code: Code) -> Counter[str]:
    """Instructions by their base."""
    return Counter(each.base for each in code)


def wide_share(code: Code) -> float:
    """Of the bytes that global loads ask for, those that come 16 at a time."""
    loads = [each.bytes for each in code if each.base in ("LDG", "LDGSTS")]
    return sum(b for b in loads if b == 16) / max(sum(loads), 1)
