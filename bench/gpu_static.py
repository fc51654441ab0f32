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
from pathlib import Path
from typing import Any

from branch_ways import Ways, hottest
from gpu_shapes import (
    CASES,
    CHUNK,
    CHUNKS,
    DECODE,
    LAYERS,
    PREFILL,
    STEPS,
    TOKEN_OPERATIONS,
    Case,
    records,
)
from load_origins import loads, pointers, stored
from sass import Code, Instruction, disassembled, wide_share
from sm_simulator import GPUS, Simulator

ARCHS = ("sm_90", "sm_89")
BEGIN, END = "<!-- bench/gpu_static.py -->", "<!-- end -->"
SHARED_BYTES, REGISTERS, MOST_THREADS = 227 << 10, 65536, 2048  # of a multiprocessor
SIMULATED = 2  # times as many workgroups as it holds; more take as much longer


@dataclass(frozen=True)
class Built:
    """One kernel's machine code for one architecture."""

    code: Code
    registers: int
    spilled: int
    shared: int
    stored: Code  # its loads of weights and of the cache


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
    kinds = pointers(source, arch)
    for part in done.stderr.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        used, spilled, shared = (
            int(match[1]) if (match := re.search(pattern, part)) else 0
            for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill stores", r"(\d+) bytes smem")
        )
        own = list(loads(codes[name], stored(kinds[name])))
        found[name] = Built(codes[name], used, spilled, shared, own)
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


def executed(case: Case, code: Code) -> int:
    """Instructions of a turn of the hottest loop."""
    at, last = hottest(code)
    count = 0
    while at <= last:
        here, count = code[at], count + 1
        jumps = here.base == "BRA" and (case.skips or not here.conditional)
        at = here.target if jumps and here.target and here.target > at else at + 1
    return count


def resident(case: Case, kernel: Built) -> int:
    """Workgroups that a multiprocessor holds at once."""
    registers = -(-kernel.registers // 8) * 8 * case.threads
    shared = kernel.shared + 1024
    return max(1, min(MOST_THREADS // case.threads, REGISTERS // registers, SHARED_BYTES // shared))


def microseconds(case: Case, kernel: Built, arch: str) -> float:
    """The simulated time of a launch; 0 of one whose branches the simulator can't follow."""
    if not case.timed:
        return 0.0
    gpu, (first, last) = GPUS[arch], hottest(kernel.code)
    loads = [i for i, each in enumerate(kernel.code) if _is_wide(each)]
    inside = [i for i in loads if first <= i <= last] or loads
    warps = case.groups * case.threads // 32
    each = case.bytes / max(warps * case.turns * (case.loads or len(inside)), 1)
    held, spread = resident(case, kernel), min(gpu.sms, case.groups)
    own = -(-case.groups // gpu.sms)  # of the multiprocessor that has most
    some = min(own, SIMULATED * held)

    def where(at: int, instruction: Instruction) -> tuple[str, float]:
        if at in inside:
            return ("cache", 512.0) if case.near else ("memory", each)
        cached = case.cached or at in loads
        return ("cache", 32.0 * instruction.bytes) if cached else ("level1", 0)

    ways = Ways(case, kernel.code, some)
    simulator = Simulator(kernel.code, gpu, case.threads // 32, ways.taken, where, spread)
    return simulator.cycles(min(held, some), some) / gpu.clock * 1e6 * own / some


def _is_wide(instruction: Instruction) -> bool:
    return instruction.base in ("LDG", "LDGSTS") and instruction.bytes == 16


def measured(archs: tuple[str, ...]) -> dict[Case, dict[str, tuple[Built, float]]]:
    """Of every case, by architecture: its kernel, and its simulated microseconds."""
    source, found = source_of(records()), {}
    with tempfile.TemporaryDirectory() as folder:
        kernels = {arch: built(source, arch, Path(folder)) for arch in archs}
    for case in CASES:
        name = f"{case.operator}_kernel" + (f"_{case.kernel}" if case.kernel else "")
        own = {arch: kernels[arch][name] for arch in archs}
        found[case] = {arch: (own[arch], microseconds(case, own[arch], arch)) for arch in archs}
    return found


def _row(case: Case, by_arch: dict[str, tuple[Built, float]]) -> list[str]:
    kernels = [kernel for kernel, _ in by_arch.values()]
    count = executed(case, kernels[0].code)
    of_unit = f"{count / case.units:.2f} a {case.unit}" if case.unit else ""
    return [
        case.name,
        f"{case.groups} x {case.threads}",
        "/".join(str(kernel.registers) for kernel in kernels),
        str(max(kernel.spilled for kernel in kernels)),
        f"{kernels[0].shared / 1024:.1f}",
        of_unit,
        f"{100 * wide_share(kernels[0].code):.0f} %",
        f"{100 * wide_share(kernels[0].stored):.0f} %" if kernels[0].stored else "",
        "" if case.before is None else f"{case.before:g}",
        *(_time(case, time) for _, time in by_arch.values()),
        *(f"{case.bytes / GPUS[arch].bandwidth * 1e6:.1f}" for arch in by_arch),
    ]


def _time(case: Case, time: float) -> str:
    return f"{time:.1f}" if case.timed else ""


def step_lines(found: dict[Case, dict[str, tuple[Built, float]]]) -> Iterator[list[str]]:
    """A step's kernels, added up, without the time between them."""
    by_name = {case.name: case for case in found}
    wholes = {
        name: [by_name[each] for each in (*layer * LAYERS, *last)]
        for name, (layer, last) in STEPS.items()
    }
    for name, whole in wholes.items():
        line = [name, str(len(STEPS[name][0]))]
        for arch in next(iter(found.values())):
            time, decode = (
                sum(found[case][arch][1] for case in cases) for cases in (whole, wholes[DECODE])
            )
            memory = sum(case.bytes for case in whole) / GPUS[arch].bandwidth * 1e6
            line += [f"{time / 1000:.2f}", f"{1e6 / time:.0f}", f"{100 * memory / time:.0f} %"]
            line.append(f"{time / decode:.2f}")
        yield line


def prefill_lines(found: dict[Case, dict[str, tuple[Built, float]]]) -> Iterator[list[str]]:
    """A prompt's kernels, added up, and what the tensor cores' float16 would take as published."""
    by_name = {case.name: case for case in found}
    layer = [by_name[name] for name in PREFILL]
    line = [f"prefill {CHUNK * CHUNKS}, {CHUNK} rows a call", str(len(layer))]
    for arch in next(iter(found.values())):
        time = sum(found[case][arch][1] for case in layer) * LAYERS * CHUNKS
        time += found[by_name["head, w8"]][arch][1]
        speed = CHUNK * CHUNKS / time * 1e6
        share = 100 * speed * TOKEN_OPERATIONS / GPUS[arch].peak
        line += [f"{time / 1000:.1f}", f"{speed:.0f}", f"{share:.0f} %"]
    yield line


def table(archs: tuple[str, ...]) -> str:
    """Markdown: every kernel, then whole steps."""
    names, found = [GPUS[arch].name for arch in archs], measured(archs)
    head = ["kernel", "groups x threads", f"registers {'/'.join(archs)}", "spilled", "shared KiB"]
    head += ["instructions", "bytes read 16 at a time", "of weights and cache", "before, H200 us"]
    head += [f"{name} us, computed" for name in names] + [f"{name} us, memory" for name in names]
    steps = ["step", "launches of a layer"]
    for name in names:
        steps += [f"{name} ms", f"{name} steps/s", f"{name}, of the memory's"]
        steps.append(f"{name}, times {DECODE}")
    prompts = ["prompt", "launches of a layer"]
    for name in names:
        prompts += [f"{name} ms", f"{name} tokens/s", f"{name}, of float16's"]
    kernels = [head, *(_row(*each) for each in found.items())]
    parts = kernels, [steps, *step_lines(found)], [prompts, *prefill_lines(found)]
    return "\n\n".join(_markdown(part) for part in parts)


def _markdown(lines: list[list[str]]) -> str:
    lines.insert(1, ["---"] * len(lines[0]))
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
