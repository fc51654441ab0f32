"""The machine code of the CPU kernels, counted for every level, also for those that this machine
can't run: products an instruction, stack accesses and vector registers of each inner loop.

    python bench/cpu_static.py                     # all levels and kernels
    python bench/cpu_static.py --level dotprod --kernel w4
    python bench/cpu_static.py --check             # fails below the floors

A kernel's largest loop is the one that a prefill spends its time in; others serve few rows and
what is left over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
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
from minicpm_mlc.ops.tir import PrimFunc
from minicpm_mlc.targets.cpu import CpuTarget

N = K = 1024  # of the products: a shape moves no instruction of an inner loop
HEADS = 16, 2, 128  # of attention: MiniCPM4.1-8B's group of 8
SMALL = 8  # products of a loop that is counted: less is no loop of a product


@dataclass(frozen=True)
class Level:
    """A family of processors, one that LLVM knows for it, and the fewest products an instruction
    that the int8 product of `w4` may have in its largest loop.
    """

    platform: str
    cpu: str
    floor: float

    @property
    def target(self) -> CpuTarget:
        """What kernels are compiled for."""
        return CpuTarget.of(self.cpu, self.platform)


LEVELS = {
    "avx2": Level("x86_64", "znver3", 7.1),
    "avxvnni": Level("x86_64", "alderlake", 9.8),
    "avx512vnni": Level("x86_64", "znver4", 20.5),
    "dotprod": Level("aarch64", "cortex-a76", 6.5),
    "i8mm": Level("aarch64", "neoverse-v1", 6.7),
}
# Stack accesses that an inner loop of a kernel may have at most. Values of 5 and 6 bits take more
# registers to unpack than there are beside the sums.
STACK = {
    **dict.fromkeys(["w4", "w4a", "w8", "swiglu w4", "swiglu w4a", "float32 peak", "int8 peak"], 4),
    "w4k": 8,
    "w5k": 18,
    "w6": 64,
    **dict.fromkeys(["decode f16", "prefill f16"], 8),
    **dict.fromkeys(["decode int8", "prefill int8"], 4),
    "float32 w4": 180,
}


def _linear(scheme: str, target: CpuTarget) -> PrimFunc:
    stored = SCHEMES[scheme].beside("int8")
    factor = target.traits.sum_factor(stored)
    assert factor is not None, target
    return build(LinearInt8(N, K, stored, sum_factor=factor), target.traits)


def _swiglu(scheme: str, target: CpuTarget) -> PrimFunc:
    stored = SCHEMES[scheme].beside("int8")
    factor = target.traits.sum_factor(stored)
    assert factor is not None, target
    return build(LinearSwigluInt8(N, K, stored, factor), target.traits)


def _float32(scheme: str, target: CpuTarget) -> PrimFunc:
    return build(Linear(N, K, SCHEMES[scheme]), target.traits)


def _attention(kind: type[AttendPrefill], kv: str, target: CpuTarget) -> PrimFunc:
    stored = target.traits.laid_out(KVFormat.named(kv))
    return build(kind(*HEADS, stored), target.traits)


def _float32_peak(target: CpuTarget) -> PrimFunc:
    return multiply_add_peak(target.traits.peak_vectors)


def _int8_peak(target: CpuTarget) -> PrimFunc:
    dot = target.int8_dot
    assert dot is not None, target
    return int8_peak(INT8_CHAINS, dot)


KERNELS: dict[str, Callable[[CpuTarget], PrimFunc]] = {
    **{name: partial(_linear, name) for name in SCHEMES if SCHEMES[name].takes_int8},
    "swiglu w4": partial(_swiglu, "w4"),
    "swiglu w4a": partial(_swiglu, "w4a"),
    "float32 w4": partial(_float32, "w4"),
    "decode f16": partial(_attention, AttendDecode, "f16"),
    "decode int8": partial(_attention, AttendDecode, "int8"),
    "prefill f16": partial(_attention, AttendPrefill, "f16"),
    "prefill int8": partial(_attention, AttendPrefill, "int8"),
    "float32 peak": _float32_peak,
    "int8 peak": _int8_peak,
}


@cache
def loops_of(level: str, kernel: str) -> list[Loop]:
    """The inner loops of a kernel, compiled for a level, the largest first."""
    assembly = assembly_of(KERNELS[kernel](LEVELS[level].target), LEVELS[level].target)
    found = [loop for loop in inner_loops(assembly) if loop.multiplies >= SMALL]
    return sorted(found, key=lambda loop: -loop.products)


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
    products = [loop for loop in loops if loop.int8] or loops  # SwiGLU has a loop of its own
    worst = max(products, key=lambda loop: loop.stack)
    if worst.stack > STACK[kernel]:
        yield (
            f"{level} {kernel}: {worst.stack} stack accesses in a loop of {worst.products} "
            f"products; at most {STACK[kernel]} are allowed"
        )
    per, floor = loops[0].products_per_instruction, LEVELS[level].floor
    if kernel == "w4" and per < floor:
        yield f"{level} {kernel}: {per:.1f} products an instruction; the floor is {floor}"


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
    parser.add_argument("--kernel", action="append", choices=list(KERNELS), help="may repeat [all]")
    parser.add_argument("--check", action="store_true", help="fail below the floors")
    parser.add_argument("--assembly", action="store_true", help="print the machine code itself")
    args = parser.parse_args()
    chosen = [(lv, k) for lv in args.level or LEVELS for k in args.kernel or KERNELS]
    if args.assembly:
        for level, kernel in chosen:
            print(assembly_of(KERNELS[kernel](LEVELS[level].target), LEVELS[level].target))
        return
    print(plain_table([COLUMNS, *(line for pair in chosen for line in cells(*pair))]))
    if args.check:
        found = [fault for pair in chosen for fault in faults(*pair)]
        sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
