"""The machine code of the CPU kernels, counted for every level, also for those that this machine
can't run: products an instruction, stack accesses and vector registers of each inner loop.

    python bench/cpu_static.py                     # all levels and kernels
    python bench/cpu_static.py --level dotprod --kernel w4
    python bench/cpu_static.py --check             # fails below the floors in cpu_floors.json
    python bench/cpu_static.py --record            # after a kernel has changed for the better

A kernel's largest loop is the one that a prefill spends its time in; others serve few rows and
what is left over.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import floor
from pathlib import Path
from typing import Any

from machine_code import Loop, inner_loops

from minicpm_mlc.base.text import plain_table
from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.cpu.speed_limits import INT8_CHAINS, int8_peak, multiply_add_peak
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.operator import Operator
from minicpm_mlc.ops.score_blocks import ScoreBlocks
from minicpm_mlc.ops.tir import PrimFunc
from minicpm_mlc.targets.cpu import CpuTarget

N = K = 1024  # of the products: a shape moves no instruction of an inner loop
HEADS = 16, 2, 128  # of attention: MiniCPM4.1-8B's group of 8
SMALL = 8  # products of a loop that is counted: less is no loop of a product
FLOORS = Path(__file__).with_name("cpu_floors.json")
FEW = 4  # accesses to the stack that any loop may have


@dataclass(frozen=True)
class Level:
    """A family of processors, and one that LLVM knows for it."""

    platform: str
    cpu: str

    @property
    def target(self) -> CpuTarget:
        """What kernels are compiled for."""
        return CpuTarget.of(self.cpu, self.platform)


LEVELS = {
    "avx2": Level("x86_64", "znver3"),
    "avxvnni": Level("x86_64", "alderlake"),
    "avx512vnni": Level("x86_64", "znver4"),
    "dotprod": Level("aarch64", "cortex-a76"),
    "i8mm": Level("aarch64", "neoverse-v1"),
}


@dataclass(frozen=True)
class Floor:
    """What a kernel of a level must keep: products an instruction in its largest loop, at least,
    and accesses to the stack in any of its loops of products, at most.
    """

    products: float
    stack: int


def linear_of(scheme: str, target: CpuTarget, n: int = N, k: int = K) -> LinearInt8:
    """A product of int8 activations and weights of a scheme, [n, k]."""
    stored = SCHEMES[scheme].beside("int8")
    factor = target.traits.sum_factor(stored)
    assert factor is not None, target
    return LinearInt8(n, k, stored, sum_factor=factor)


def swiglu_of(scheme: str, target: CpuTarget, n: int = N, k: int = K) -> LinearSwigluInt8:
    """The same of gate and up, [2 * n, k]."""
    stored = SCHEMES[scheme].beside("int8")
    factor = target.traits.sum_factor(stored)
    assert factor is not None, target
    return LinearSwigluInt8(n, k, stored, factor)


def _float32(scheme: str, target: CpuTarget, n: int = N, k: int = K) -> Linear:
    return Linear(n, k, SCHEMES[scheme])


def _attention(kind: type[AttendPrefill], kv: str, target: CpuTarget) -> AttendPrefill:
    return kind(*HEADS, target.traits.laid_out(KVFormat.named(kv)))


def _scores(kv: str, target: CpuTarget) -> ScoreBlocks:
    return ScoreBlocks(*HEADS, False, target.traits.laid_out(KVFormat.named(kv)))


def float32_peak(target: CpuTarget) -> PrimFunc:
    """The kernel that measures a processor's float32 multiply-adds."""
    return multiply_add_peak(target.traits.peak_vectors)


def int8_peak_of(target: CpuTarget) -> PrimFunc:
    """The kernel that measures a processor's int8 products."""
    assert target.int8_dot is not None, target
    return int8_peak(INT8_CHAINS, target.int8_dot)


PRODUCTS: dict[str, Callable[..., Operator]] = {  # of a target, and n and k where others are wanted
    **{name: partial(linear_of, name) for name in SCHEMES if SCHEMES[name].takes_int8},
    "swiglu w4": partial(swiglu_of, "w4"),
    "swiglu w4a": partial(swiglu_of, "w4a"),
    "float32 w4": partial(_float32, "w4"),
}
PAGED: dict[str, Callable[[CpuTarget], Operator]] = {
    **{f"decode {kv}": partial(_attention, AttendDecode, kv) for kv in ("f16", "int8")},
    **{f"prefill {kv}": partial(_attention, AttendPrefill, kv) for kv in ("f16", "int8")},
    **{f"scores {kv}": partial(_scores, kv) for kv in ("f16", "int8")},
}
RECORDS: dict[str, Callable[..., Operator]] = PRODUCTS | PAGED
PEAKS: dict[str, Callable[[CpuTarget], PrimFunc]] = {
    "float32 peak": float32_peak,
    "int8 peak": int8_peak_of,
}
KERNELS = [*RECORDS, *PEAKS]


def function_of(level: str, kernel: str) -> PrimFunc:
    """A kernel for a level."""
    target = LEVELS[level].target
    if kernel in PEAKS:
        return PEAKS[kernel](target)
    return build(RECORDS[kernel](target), target.traits)


@cache
def floors() -> dict[str, dict[str, Floor]]:
    """By level and kernel."""
    stored = json.loads(FLOORS.read_text())
    return {
        level: {kernel: Floor(**floor) for kernel, floor in kernels.items()}
        for level, kernels in stored.items()
    }


def record(chosen: list[tuple[str, str]]) -> None:
    """Writes what is counted now as floors; the others stay."""
    found = json.loads(FLOORS.read_text()) if FLOORS.exists() else {}
    for level, kernel in chosen:
        loops = loops_of(level, kernel)
        per = floor(100 * loops[0].products_per_instruction) / 100
        own = Floor(per, max(FEW, most_stack(loops).stack))
        found.setdefault(level, {})[kernel] = asdict(own)
    FLOORS.write_text(json.dumps(found, indent=1) + "\n")


@cache
def loops_of(level: str, kernel: str) -> list[Loop]:
    """The inner loops of a kernel, compiled for a level, the largest first; of those as large, the
    one of whole tiles, which has the fewest instructions.
    """
    assembly = assembly_of(function_of(level, kernel), LEVELS[level].target)
    found = [loop for loop in inner_loops(assembly) if loop.multiplies >= SMALL]
    return sorted(found, key=lambda loop: (-loop.products, loop.instructions))


def assembly_of(function: PrimFunc, target: CpuTarget) -> str:
    """The text of a PrimFunc's machine code."""
    import tvm

    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built: Any = tvm.compile(module, target.tvm_target(), tir_pipeline=target.tir_pipeline())
    outer = getattr(built, "mod", built)
    modules = [outer, *getattr(outer, "imports", [])]
    return next(text for each in modules if (text := each.inspect_source("asm")))


def faults(level: str, kernel: str) -> Iterator[str]:
    """What a kernel falls short of, a sentence each."""
    loops = loops_of(level, kernel)
    if not loops:
        yield f"{level} {kernel}: no loop of products was found"
        return
    own = floors().get(level, {}).get(kernel)
    if own is None:
        yield f"{level} {kernel}: no floor; --record writes one"
        return
    worst = most_stack(loops)
    if worst.stack > own.stack:
        yield (
            f"{level} {kernel}: {worst.stack} stack accesses in a loop of {worst.products} "
            f"products; at most {own.stack} are allowed"
        )
    per = loops[0].products_per_instruction
    if per < own.products:
        yield f"{level} {kernel}: {per:.1f} products an instruction; the floor is {own.products}"


def most_stack(loops: list[Loop]) -> Loop:
    """The loop that goes to the stack most."""
    return max(loops, key=lambda loop: loop.stack)


def cells(level: str, kernel: str) -> list[list[str]]:
    """A line for each loop."""
    return [
        [
            level,
            kernel,
            f"{loop.products}",
            f"{loop.instructions}",
            f"{loop.products_per_instruction:.1f}",
            f"{loop.stores}",
            f"{loop.loads}",
            f"{loop.registers}",
        ]
        for loop in loops_of(level, kernel)
    ]


COLUMNS = [
    "level",
    "kernel",
    "products",
    "instructions",
    "products each",
    "stack stores",
    "stack loads",
    "registers",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", action="append", choices=list(LEVELS), help="may repeat  [all]")
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="may repeat [all]")
    parser.add_argument("--check", action="store_true", help="fail below the floors")
    parser.add_argument("--record", action="store_true", help="write floors of what is counted")
    parser.add_argument("--assembly", action="store_true", help="print the machine code itself")
    args = parser.parse_args()
    chosen = [(lv, k) for lv in args.level or LEVELS for k in args.kernel or KERNELS]
    if args.assembly:
        for level, kernel in chosen:
            print(assembly_of(function_of(level, kernel), LEVELS[level].target))
        return
    if args.record:
        record(chosen)
    print(plain_table([COLUMNS, *(line for pair in chosen for line in cells(*pair))]))
    if args.check:
        found = [fault for pair in chosen for fault in faults(*pair)]
        sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
