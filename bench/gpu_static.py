"""What CUDA's kernels are before there is a GPU: registers, spills, widths of loads, instructions
per weight or token, all counted in their machine code; and the time that a simulator computes.

    python bench/gpu_static.py                      # the table, on standard output
    python bench/gpu_static.py --write docs/gpu.md  # between the marks there

Needs nvcc and nvdisasm (pip install nvidia-cuda-nvdisasm). The shapes are MiniCPM4.1-8B's with
4-bit weights, one row of decode unless a name says otherwise.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sass import Code, Instruction, disassembled, innermost, wide_share
from sm_simulator import GPUS, Simulator, Warp

ARCHS = ("sm_90", "sm_89")
HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 4096, 16384, 32, 2, 128, 73448, 32
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
W4, SCALE = 0.5, 2 / 32  # bytes of a weight
BEGIN, END = "<!-- bench/gpu_static.py -->", "<!-- end -->"
SHARED_BYTES, REGISTERS, MOST_THREADS = 227 << 10, 65536, 2048  # of a multiprocessor


@dataclass(frozen=True)
class Case:
    """One launch: the `kernel`-th of an operator. `turns`: how often a warp goes through its
    hottest loop; `units`: what one turn of it does for a thread, in `unit`s; `bytes`: what the
    launch reads and no cache has; `per_layer`: launches of it in a layer.
    """

    name: str
    operator: str
    groups: int
    threads: int
    unit: str = ""
    units: float = 0
    turns: int = 1
    bytes: float = 0
    per_layer: float = 1
    kernel: int = 0
    others: int = 1  # turns of the other loops


def linear_case(name: str, operator: str, n: int, k: int, threads: int = 256) -> Case:
    """A linear's streaming kernel on one row: a thread takes 4 rows of a group of 32 columns."""
    turns = -(-k // 32 // (threads // 4))
    return Case(name, operator, n // 16, threads, "weight", 128, turns, n * k * (W4 + SCALE))


def attention_case(name: str, operator: str, pages: int) -> Case:
    """The tiles of a decode row: a warp takes 16 tokens of a page."""
    splits = max(1, min(256 // KV_HEADS, pages))
    size = pages * 64 * KV_HEADS * HEAD_DIM * 2 * 2
    groups = splits * KV_HEADS
    turns = -(-pages // splits)
    return Case(name, operator, groups, 128, "token", 16 / 32, turns, size)


CASES = (
    linear_case("qkv", "linear_qkv", QKV, HIDDEN),
    linear_case("o", "linear_o", HIDDEN, HIDDEN),
    Case(
        "gate, up, SwiGLU",
        "linear_swiglu",
        WIDTH // 32,
        256,
        "weight",
        128,
        HIDDEN // 32 // 16,
        2 * WIDTH * HIDDEN * (W4 + SCALE),
    ),
    linear_case("down", "linear_down", HIDDEN, WIDTH),
    Case("norm, rounding", "norm", 1, 256, turns=4, per_layer=2, bytes=HIDDEN * 8, others=16),
    Case("rounding", "quantize", HIDDEN // 512, 128, bytes=HIDDEN * 4),
    attention_case("attention, 1K", "attend", 16),
    Case("merge, 1K", "attend", HEADS, 512, turns=4, kernel=1, others=4, bytes=16 * 16896),
    attention_case("attention, 128K dense", "attend", 2048),
    attention_case("attention, 128K sparse", "attend_blocks", 96),
)


def records() -> dict[str, Any]:
    """The operators by the names that CASES use."""
    from minicpm_mlc.ops.attend import AttendDecode
    from minicpm_mlc.ops.attend_blocks import AttendBlocks
    from minicpm_mlc.ops.formats.kv import F16
    from minicpm_mlc.ops.formats.weights import SCHEMES
    from minicpm_mlc.ops.linear_int8 import LinearInt8
    from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
    from minicpm_mlc.ops.quantize_rows import QuantizeRows
    from minicpm_mlc.ops.rms_norm import RmsNormInt8

    scheme, factor = SCHEMES["w4"].beside("int8"), -8
    linear = partial(LinearInt8, scheme=scheme, sum_factor=factor)
    heads = HEADS, KV_HEADS, HEAD_DIM
    return {
        "linear_qkv": linear(QKV, HIDDEN),
        "linear_o": linear(HIDDEN, HIDDEN, residual=True),
        "linear_down": linear(HIDDEN, WIDTH, residual=True),
        "linear_swiglu": LinearSwigluInt8(WIDTH, HIDDEN, scheme, factor),
        "norm": RmsNormInt8(HIDDEN, 1e-6, factor),
        "quantize": QuantizeRows(HIDDEN, factor),
        "attend": AttendDecode(*heads, F16),
        "attend_blocks": AttendBlocks(*heads, F16, 96, True),
    }


@dataclass(frozen=True)
class Built:
    """One kernel's machine code for one architecture."""

    code: Code
    registers: int
    spilled: int
    shared: int


def built(source: str, arch: str, folder: Path) -> dict[str, Built]:
    """Every kernel of a CUDA source by name. Raises SystemExit with what nvcc says."""
    (folder / "k.cu").write_text(source)
    command = ["nvcc", "-w", "-O3", "-cubin", f"-arch={arch}", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, "-o", f"{arch}.cubin", "k.cu"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"nvcc failed: {done.stderr.strip()[-2000:]}")
    codes, found = disassembled(folder / f"{arch}.cubin"), {}
    for part in done.stderr.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        used, spilled, shared = (
            int(match[1]) if (match := re.search(pattern, part)) else 0
            for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill stores", r"(\d+) bytes smem")
        )
        found[name] = Built(codes[name], used, spilled, shared)
    return found


def source_of(operators: dict[str, Any]) -> str:
    """CUDA C++ of the operators' kernels."""
    import tvm

    from minicpm_mlc.ops.build import build
    from minicpm_mlc.targets import get_target
    from minicpm_mlc.targets.cuda_compiler import PRELUDE, without_head

    target = get_target("cuda", arch="sm_90")
    functions = {
        name: build(record, target.traits).with_attr("global_symbol", name)
        for name, record in operators.items()
    }
    library = tvm.compile(
        tvm.IRModule(functions), target.tvm_target(), tir_pipeline=target.tir_pipeline()
    )
    return PRELUDE + without_head(library.mod.imports[0].inspect_source())


def hottest(code: Code) -> tuple[int, int]:
    """The innermost loop with most instructions; all of the code where there is none."""
    return max(innermost(code), key=lambda loop: loop[1] - loop[0], default=(0, len(code) - 1))


def resident(case: Case, kernel: Built) -> int:
    """Workgroups that a multiprocessor holds at once."""
    registers = -(-kernel.registers // 8) * 8 * case.threads
    shared = kernel.shared + 1024
    return max(1, min(MOST_THREADS // case.threads, REGISTERS // registers, SHARED_BYTES // shared))


def microseconds(case: Case, kernel: Built, arch: str) -> float:
    """The simulated time of a launch."""
    gpu, (first, last) = GPUS[arch], hottest(kernel.code)
    loads = [i for i, each in enumerate(kernel.code) if _is_wide(each)]
    inside = [i for i in loads if first <= i <= last] or loads
    warps = case.groups * case.threads // 32
    each = case.bytes / max(warps * case.turns * len(inside), 1)

    def decide(at: int, warp: Warp) -> bool:
        target = kernel.code[at].target
        if target is None or target > at:
            return False
        turns = case.turns if at == last else case.others
        done = warp.turns.get(at, 0) + 1
        warp.turns[at] = 0 if done >= turns else done
        return done < turns

    def where(at: int, _: Instruction) -> tuple[str, float]:
        return ("memory", each) if at in inside else ("level1", 0)

    held, spread = resident(case, kernel), min(gpu.sms, case.groups)
    own = -(-case.groups // gpu.sms)  # of the multiprocessor that has most
    simulator = Simulator(kernel.code, gpu, case.threads // 32, decide, where, spread)
    return simulator.cycles(min(held, own), own) / gpu.clock * 1e6


def _is_wide(instruction: Instruction) -> bool:
    return instruction.base in ("LDG", "LDGSTS") and instruction.bytes == 16


def rows(archs: tuple[str, ...]) -> Iterator[list[str]]:
    """Of the table."""
    source = source_of(records())
    with tempfile.TemporaryDirectory() as folder:
        kernels = {arch: built(source, arch, Path(folder)) for arch in archs}
    for case in CASES:
        name = f"{case.operator}_kernel" + (f"_{case.kernel}" if case.kernel else "")
        yield _row(case, {arch: kernels[arch][name] for arch in archs})


def _row(case: Case, kernels: dict[str, Built]) -> list[str]:
    first = next(iter(kernels.values()))
    start, end = hottest(first.code)
    loop = end - start + 1
    of_unit = (
        f"{loop / case.units:.2f} a {case.unit}"
        if case.unit == "weight"
        else (f"{loop / 16:.1f} a {case.unit} and KV head" if case.unit else "")
    )
    return [
        case.name,
        f"{case.groups} x {case.threads}",
        "/".join(str(kernel.registers) for kernel in kernels.values()),
        str(max(kernel.spilled for kernel in kernels.values())),
        f"{first.shared / 1024:.1f}",
        of_unit,
        f"{100 * wide_share(first.code):.0f} %",
        *(f"{microseconds(case, kernel, arch):.1f}" for arch, kernel in kernels.items()),
        *(f"{case.bytes / GPUS[arch].bandwidth * 1e6:.1f}" for arch in kernels),
    ]


def table(archs: tuple[str, ...]) -> str:
    """Markdown."""
    names = [GPUS[arch].name for arch in archs]
    head = ["kernel", "groups x threads", f"registers {'/'.join(archs)}", "spilled", "shared KiB"]
    head += ["instructions", "bytes read 16 at a time"]
    head += [f"{name} us, computed" for name in names] + [f"{name} us, memory" for name in names]
    lines = [head, ["---"] * len(head), *rows(archs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between(path: Path, text: str) -> None:
    """Replace what stands between the marks. Raises SystemExit where there are none."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} has no {BEGIN} ... {END}; put them where the table goes")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default=",".join(ARCHS), help="of which; default %(default)s")
    parser.add_argument("--write", type=Path, help="a Markdown file with the marks")
    arguments = parser.parse_args()
    if not shutil.which("nvcc"):
        raise SystemExit("nvcc is not here; install NVIDIA's CUDA toolkit 13.0")
    text = table(tuple(arguments.arch.split(",")))
    if arguments.write:
        write_between(arguments.write, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
