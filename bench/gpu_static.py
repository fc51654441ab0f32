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

from sass import Code, Instruction, disassembled, innermost, loops, wide_share
from sm_simulator import GPUS, Simulator, Warp

ARCHS = ("sm_90", "sm_89")
HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 4096, 16384, 32, 2, 128, 73448, 32
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
W4, SCALE = 0.5, 2 / 32  # bytes of a weight
BEGIN, END = "<!-- bench/gpu_static.py -->", "<!-- end -->"
SHARED_BYTES, REGISTERS, MOST_THREADS = 227 << 10, 65536, 2048  # of a multiprocessor


@dataclass(frozen=True)
class Case:
    """One launch: the `kernel`-th of an operator.

    `turns`: how often a warp goes through its hottest loop; `units`: what one turn of it does, in
    `unit`s: weights of a thread, tokens of a warp; `bytes`: what the launch reads and no cache has.
    """

    name: str
    operator: str
    groups: int
    threads: int
    unit: str = ""
    units: float = 0
    turns: int = 1
    bytes: float = 0
    kernel: int = 0
    others: int = 1  # turns of the other loops
    loads: int | None = None  # of the loop's wide ones a turn; None: all
    cached: bool = False  # its narrow loads find all in the second level's cache
    timed: bool = True
    skips: bool = False  # its hottest loop jumps over what seldom has to be done
    before: float | None = None  # microseconds on an H200 of the kernels at commit de83073


def linear_case(name: str, operator: str, n: int, k: int, before: float) -> Case:
    """A linear's streaming kernel on one row: a thread takes 4 rows of a group of 32 columns."""
    threads, size = 256, n * k * (W4 + SCALE)
    turns = -(-k // 32 // (threads // 4))
    return Case(name, operator, n // 16, threads, "weight", 128, turns, size, before=before)


def attention_case(name: str, operator: str, pages: int, before: float) -> Case:
    """The tiles of a decode row: a warp takes 16 tokens of a page."""
    splits = max(1, min(256 // KV_HEADS, pages))
    size = pages * 64 * KV_HEADS * HEAD_DIM * 2 * 2
    groups = splits * KV_HEADS
    turns = -(-pages // splits)
    shape = groups, 128, "token", 16, turns, size
    # after the first pages they are full, and the maxima stay
    return Case(name, operator, *shape, before=before, loads=HEAD_DIM // 8, skips=turns > 4)


def tiles_case(name: str, operator: str, n: int, k: int, rows: int) -> Case:
    """A linear's kernels on tensor cores: warps take 32 rows of x, few of them by their share of
    the columns.
    """
    few, size = rows <= 32, n * k * (W4 + SCALE) + rows * k * 1.25
    groups = n // 32 if few else -(-rows // 128) * n // 64
    turns = k // 64 // 8 if few else k // 64
    # what a warp does in a turn, by the weights of a thread: 32 (64) rows by twice 32 columns
    unit, units = "weight and 32 rows", 64 if few else 128
    threads, kernel = (256, 2) if few else (128, 3)
    shape = groups, threads, unit, units, turns, size, kernel
    return Case(name, operator, *shape, cached=not few)


LONG = 2048  # pages of 128K tokens
# the column `before` is the simulator's for the kernels that were here first, which had no name for
# what is fused now: attention by 94 us a page of its longest split
CASES = (
    linear_case("norm, qkv", "norm_qkv", QKV, HIDDEN, 20),
    linear_case("o", "linear_o", HIDDEN, HIDDEN, 20),
    Case(
        "norm, gate, up, SwiGLU",
        "norm_swiglu",
        WIDTH // 32,
        256,
        "weight",
        128,
        HIDDEN // 32 // 16,
        2 * WIDTH * HIDDEN * (W4 + SCALE),
        before=54,
    ),
    linear_case("down", "linear_down", HIDDEN, WIDTH, 79),
    Case(
        "head, w8",
        "linear_head",
        -(-VOCAB // 16),
        256,
        "weight",
        128,
        2,
        VOCAB * HIDDEN * (1 + SCALE),
    ),
    tiles_case("o, 16 rows", "linear_o", HIDDEN, HIDDEN, 16),
    tiles_case("down, 16 rows", "linear_down", HIDDEN, WIDTH, 16),
    tiles_case("o, 512 rows", "linear_o", HIDDEN, HIDDEN, 512),
    Case(
        "o, exact activations",
        "linear_exact",
        HIDDEN // 16,
        128,
        "weight",
        128,
        HIDDEN // 32 // 32,
        HIDDEN * HIDDEN * (W4 + SCALE),
        timed=False,
    ),
    Case(
        "rope, append, means",
        "rope_append",
        HEADS + 2 * KV_HEADS,
        128,
        bytes=QKV * 4,
        cached=True,
        others=16,
    ),
    Case("norm, rounding", "norm", 1, 256, bytes=HIDDEN * 8, cached=True),
    Case("rounding", "quantize", HIDDEN // 512, 128, bytes=HIDDEN * 4, cached=True),
    attention_case("attention, 1K", "attend", 16, 8 * 94),
    Case(
        "merge, 1K",
        "attend",
        HEADS * HEAD_DIM // 32,
        256,
        kernel=1,
        bytes=16 * 16896,
        cached=True,
    ),
    Case(
        "merge, 128K",
        "attend",
        HEADS * HEAD_DIM // 32,
        256,
        kernel=1,
        bytes=128 * 16896,
        cached=True,
    ),
    attention_case("attention, 128K dense", "attend", LONG, 64 * 94),
    attention_case("attention, 128K sparse", "attend_blocks", 96, 8 * 94),
    Case(
        "logits of segments, 128K",
        "score_blocks",
        KV_HEADS * -(-LONG // 15),
        128,
        bytes=LONG * 4 * KV_HEADS * HEAD_DIM * 4,
        others=2,
        before=15.5 + 4.4,
    ),
    Case(
        "pooling, 128K",
        "score_blocks",
        KV_HEADS * LONG // 64,
        256,
        turns=3,  # of 137 tiles' sums, four at a time by 16 threads
        kernel=1,
        bytes=HEADS * LONG * 16,
        cached=True,
        before=9.8,
    ),
    Case(
        "selection, 128K",
        "select_blocks",
        KV_HEADS,
        256,
        bytes=KV_HEADS * LONG * 4,
        cached=True,
        turns=10,  # passes, of 16 at most
        others=2,
        before=45,
    ),
)


def records() -> dict[str, Any]:
    """The operators by the names that CASES use."""
    from minicpm_mlc.ops.attend import AttendDecode
    from minicpm_mlc.ops.attend_blocks import AttendBlocks
    from minicpm_mlc.ops.formats.kv import F16
    from minicpm_mlc.ops.formats.weights import SCHEMES
    from minicpm_mlc.ops.linear import Linear
    from minicpm_mlc.ops.linear_int8 import LinearInt8
    from minicpm_mlc.ops.norm_linear import NormLinearInt8, NormLinearSwigluInt8
    from minicpm_mlc.ops.quantize_rows import QuantizeRows
    from minicpm_mlc.ops.rms_norm import RmsNormInt8
    from minicpm_mlc.ops.rope_append import RopeAppendMeans
    from minicpm_mlc.ops.score_blocks import ScoreBlocks
    from minicpm_mlc.ops.select_blocks import SelectBlocks

    scheme, factor = SCHEMES["w4"].beside("int8"), -8
    linear = partial(LinearInt8, scheme=scheme, sum_factor=factor)
    heads = HEADS, KV_HEADS, HEAD_DIM
    return {
        "norm_qkv": NormLinearInt8(QKV, HIDDEN, scheme, sum_factor=factor, eps=1e-6),
        "linear_o": linear(HIDDEN, HIDDEN, residual=True),
        "linear_down": linear(HIDDEN, WIDTH, residual=True),
        "norm_swiglu": NormLinearSwigluInt8(WIDTH, HIDDEN, scheme, factor, 1e-6),
        "linear_exact": Linear(HIDDEN, HIDDEN, SCHEMES["w4"], residual=True),
        "linear_head": LinearInt8(VOCAB, HIDDEN, SCHEMES["w8"].beside("int8"), sum_factor=0),
        "norm": RmsNormInt8(HIDDEN, 1e-6, factor),
        "rope_append": RopeAppendMeans(*heads, F16, True),
        "quantize": QuantizeRows(HIDDEN, factor),
        "attend": AttendDecode(*heads, F16, sum_factor=factor),
        "attend_blocks": AttendBlocks(*heads, F16, 96, True, sum_factor=factor),
        "score_blocks": ScoreBlocks(*heads, True),
        "select_blocks": SelectBlocks(KV_HEADS, 64, 32, 1),
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
    around = {b for a, b in loops(kernel.code)} - {b for _, b in innermost(kernel.code)}
    warps = case.groups * case.threads // 32
    each = case.bytes / max(warps * case.turns * (case.loads or len(inside)), 1)

    def decide(at: int, warp: Warp) -> bool:
        target = kernel.code[at].target
        if target is None or target > at:
            return case.skips and target is not None and first <= at <= last
        turns = case.turns if at == last else 1 if at in around else case.others
        done = warp.turns.get(at, 0) + 1
        warp.turns[at] = 0 if done >= turns else done
        return done < turns

    def where(at: int, instruction: Instruction) -> tuple[str, float]:
        if at in inside:
            return "memory", each
        cached = case.cached or at in loads
        return ("cache", 32.0 * instruction.bytes) if cached else ("level1", 0)

    held, spread = resident(case, kernel), min(gpu.sms, case.groups)
    own = -(-case.groups // gpu.sms)  # of the multiprocessor that has most
    simulator = Simulator(kernel.code, gpu, case.threads // 32, decide, where, spread)
    return simulator.cycles(min(held, own), own) / gpu.clock * 1e6


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
        "" if case.before is None else f"{case.before:g}",
        *(_time(case, time) for _, time in by_arch.values()),
        *(f"{case.bytes / GPUS[arch].bandwidth * 1e6:.1f}" for arch in by_arch),
    ]


def _time(case: Case, time: float) -> str:
    return f"{time:.1f}" if case.timed else ""


STEP = ("norm, qkv", "rope, append, means", "o", "norm, gate, up, SwiGLU", "down")
SPARSE = ("logits of segments", "pooling", "selection")
LAST = ("norm, rounding", "rounding", "head, w8")
STEPS = {  # the launches of a layer, by context
    "1K": (*STEP, "attention, 1K", "merge, 1K"),
    "128K sparse": (
        *STEP,
        *(f"{name}, 128K" for name in SPARSE),
        "attention, 128K sparse",
        "merge, 128K",
    ),
    "128K dense": (*STEP, "attention, 128K dense", "merge, 128K"),
}


def step_lines(found: dict[Case, dict[str, tuple[Built, float]]]) -> Iterator[list[str]]:
    """A decode step's kernels, added up, without the time between them."""
    by_name = {case.name: case for case in found}
    for name, launches in STEPS.items():
        layer = [by_name[each] for each in launches]
        whole = layer * LAYERS + [by_name[each] for each in LAST]
        line = [f"decode {name}", str(len(layer))]
        for arch in next(iter(found.values())):
            time = sum(found[case][arch][1] for case in whole)
            memory = sum(case.bytes for case in whole) / GPUS[arch].bandwidth * 1e6
            line += [f"{time / 1000:.2f}", f"{1e6 / time:.0f}", f"{100 * memory / time:.0f} %"]
        yield line


def table(archs: tuple[str, ...]) -> str:
    """Markdown: every kernel, then whole steps."""
    names, found = [GPUS[arch].name for arch in archs], measured(archs)
    head = ["kernel", "groups x threads", f"registers {'/'.join(archs)}", "spilled", "shared KiB"]
    head += ["instructions", "bytes read 16 at a time", "before, H200 us"]
    head += [f"{name} us, computed" for name in names] + [f"{name} us, memory" for name in names]
    steps = ["step", "launches of a layer"]
    for name in names:
        steps += [f"{name} ms", f"{name} tokens/s", f"{name}, of the memory's"]
    kernels = _markdown([head, *(_row(*each) for each in found.items())])
    return f"{kernels}\n\n{_markdown([steps, *step_lines(found)])}"


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
