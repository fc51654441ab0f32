"""One multiprocessor of an NVIDIA GPU, cycle by cycle over its machine code: warps in order, the
stalls and scoreboards of the encoding, the pipes, shared memory, and a queue to the memory.

No GPU confirmed it yet: its times are trusted to some 30 %, its use is to compare two kernels.
Which way branches go is told from outside.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from sass import NONE, Code, Instruction


@dataclass(frozen=True)
class Gpu:
    """`bandwidth` bytes a second of the whole GPU; latencies in cycles; `matrix` cycles that the
    tensor core of a quarter is busy with an m16n8k16 of float16, of which the whole GPU does `peak`
    multiplications and additions a second, as published.
    """

    name: str
    sms: int
    clock: float
    bandwidth: float
    memory: int
    cache: int
    level1: int
    matrix: int
    half: int
    cache_bytes: int  # a cycle and multiprocessor from the second level
    peak: float
    launch: float = 1.0e-6  # of a kernel in a graph, before its first instruction


GPUS = {
    "sm_90": Gpu("H200", 132, 1.98e9, 4.3e12, 620, 270, 38, 8, 1, 40, 989e12),
    "sm_89": Gpu("RTX 4090", 128, 2.52e9, 0.94e12, 700, 290, 38, 32, 2, 30, 165e12),
}
# instructions by the pipe of a quarter that runs them, and for how many cycles
_ALU = (
    "LOP3 SHF ISETP IADD3 SEL PRMT VIADD LEA FMNMX VIMNMX VIADDMNMX FSETP PLOP3 FSEL I2FP IABS POPC"
    " FLO MOV R2P LOP SHL SGXT BMSK VABSDIFF"
)
_PIPES = {
    **dict.fromkeys(_ALU.split(), ("alu", 2)),
    **dict.fromkeys("FFMA FMUL FADD".split(), ("fma", 1)),
    **dict.fromkeys("IMAD IDP IDP4A".split(), ("heavy", 2)),
    **dict.fromkeys("MUFU F2F F2I I2F".split(), ("special", 8)),
    "F2FP": ("special", 2),
}
_LATENCY = {
    **dict.fromkeys("MUFU F2F F2I I2F".split(), 24),
    **dict.fromkeys("S2R S2UR LDC ULDC CS2R SHFL".split(), 25),
    **dict.fromkeys("HMMA IMMA".split(), 33),
    **dict.fromkeys("STS STG ATOMS".split(), 20),
    "IDP": 6,
}
RESULT, READ, MEET = 15, 12, 14  # cycles of other scoreboards, of reads, of a barrier
SHARED = 26
MOST_CYCLES = 1_000_000

Decide = Callable[[int, "Warp"], bool]  # (place of a conditional branch, warp) -> taken
# (place of a load, instruction) -> ("memory", "cache" or "level1", bytes of a warp)
Where = Callable[[int, Instruction], tuple[str, float]]


@dataclass
class Warp:
    """One warp: `turns` counts how often each branch was taken in this entry of its loop."""

    number: int
    group: int
    at: int = 0
    boards: list[float] = field(default_factory=lambda: [0.0] * 6)
    turns: dict[int, int] = field(default_factory=dict)
    copies: list[float] = field(default_factory=list)  # when each group of cp.async is there
    copying: float = 0.0


@dataclass
class _Group:
    waiting: list[Warp] = field(default_factory=list)
    left: int = 0


class Simulator:
    """`groups` workgroups of `warps` warps at once, `total` in all."""

    def __init__(
        self,
        code: Code,
        gpu: Gpu,
        warps: int,
        decide: Decide,
        where: Where,
        spread: int | None = None,
    ) -> None:
        """`spread`: multiprocessors that work at the same time, and share the memory."""
        self.code, self.gpu, self.warps = code, gpu, warps
        self.decide, self.where = decide, where
        self.per_cycle = gpu.bandwidth / min(spread or gpu.sms, gpu.sms) / gpu.clock
        self.per_cycle = min(self.per_cycle, gpu.cache_bytes)
        self.queues: list[list[tuple[float, int]]] = [[] for _ in range(4)]
        self.clocks = [0.0] * 4
        self.busy: list[dict[str, float]] = [{} for _ in range(4)]
        self.shared = self.memory = self.cached = self.end = 0.0
        self.all: list[Warp] = []
        self.groups: dict[int, _Group] = {}

    def cycles(self, groups: int, total: int) -> float:
        """Until the last warp has ended. Raises RuntimeError where none can go on."""
        self.total, self.started, self.live = total, 0, 0
        for i in range(min(groups, total)):
            self._start(i * 4.0)
        while self.live:
            quarter = min(
                (q for q in range(4) if self.queues[q]),
                key=lambda q: max(self.queues[q][0][0], self.clocks[q]),
                default=None,
            )
            if quarter is None:
                raise RuntimeError("every warp waits at a barrier")
            self._issue(quarter)
            if max(self.clocks) > MOST_CYCLES:
                raise RuntimeError(f"no end after {MOST_CYCLES} cycles: branches go round")
        return self.end

    def _start(self, time: float) -> None:
        self.groups[self.started] = _Group(left=self.warps)
        for _ in range(self.warps):
            warp = Warp(len(self.all), self.started)
            self.all.append(warp)
            self._ready(warp, time)
        self.started += 1
        self.live += self.warps

    def _ready(self, warp: Warp, time: float) -> None:
        heapq.heappush(self.queues[warp.number % 4], (time, warp.number))

    def _issue(self, q: int) -> None:
        """One instruction of the oldest warp that can, or a cycle of waiting."""
        queue, time = self.queues[q], max(self.queues[q][0][0], self.clocks[q])
        ready = []
        while queue and queue[0][0] <= time:
            ready.append(heapq.heappop(queue))
        ready.sort(key=lambda entry: entry[1])
        chosen = next((e for e in ready if self._free(q, self.all[e[1]], time)), None)
        for entry in ready:
            if entry is not chosen:
                heapq.heappush(queue, entry if chosen else (max(time + 1, entry[0]), entry[1]))
        self.clocks[q] = time + 1
        if chosen:
            self._run(q, self.all[chosen[1]], time)

    def _free(self, q: int, warp: Warp, time: float) -> bool:
        pipe, _ = self._pipe(self.code[warp.at])
        return pipe is None or self.busy[q].get(pipe, 0) <= time

    def _pipe(self, instruction: Instruction) -> tuple[str | None, float]:
        base = instruction.base
        if base in ("HMMA", "IMMA"):
            half = ".1688." in instruction.opcode and "TF32" not in instruction.opcode
            return "matrix", self.gpu.matrix * (0.5 if half else 1)
        if base in ("HADD2", "HFMA2", "HMUL2"):
            return "fma", self.gpu.half
        return _PIPES.get(base, (None, 1))

    def _run(self, q: int, warp: Warp, time: float) -> None:
        instruction = self.code[warp.at]
        pipe, cycles = self._pipe(instruction)
        if pipe:
            self.busy[q][pipe] = time + cycles
        latency = self._latency(warp, instruction, time)
        stall: float = max(1, instruction.stall)
        if instruction.base in ("DEPBAR", "MEMBAR") and latency:
            stall = max(stall, latency)
        if instruction.sets != NONE:
            board = time + (latency or RESULT)
            warp.boards[instruction.sets] = max(warp.boards[instruction.sets], board)
        if instruction.reads != NONE:
            warp.boards[instruction.reads] = max(warp.boards[instruction.reads], time + READ)
        self._go_on(warp, instruction, time, stall)

    def _go_on(self, warp: Warp, instruction: Instruction, time: float, stall: float) -> None:
        if instruction.base == "EXIT" and not (
            instruction.conditional and not self.decide(warp.at, warp)
        ):
            self._leave(warp, time)
            return
        if instruction.target is not None and instruction.base == "BRA":
            forwards = instruction.target > warp.at and not instruction.conditional
            taken = forwards or self.decide(warp.at, warp)
            warp.at = instruction.target if taken else warp.at + 1
            stall = max(stall, 6.0) if taken else stall
        else:
            warp.at += 1
        if instruction.base == "BAR":
            self.groups[warp.group].waiting.append(warp)
            self._meet(warp.group, time)
            return
        self._ready(warp, self._waited(warp, time + stall))

    def _waited(self, warp: Warp, time: float) -> float:
        """When the scoreboards that the next instruction waits for are told."""
        waits = self.code[warp.at].waits
        return max([time, *(warp.boards[i] for i in range(6) if waits >> i & 1)])

    def _meet(self, number: int, time: float) -> None:
        group = self.groups[number]
        if group.left and len(group.waiting) == group.left:
            waiting, group.waiting = group.waiting, []
            for warp in waiting:
                self._ready(warp, self._waited(warp, time + MEET))

    def _leave(self, warp: Warp, time: float) -> None:
        self.live -= 1
        self.end = max(self.end, time)
        self.groups[warp.group].left -= 1
        if not self.groups[warp.group].left and self.started < self.total:
            self._start(time + 100)
        self._meet(warp.group, time)

    def _latency(self, warp: Warp, instruction: Instruction, time: float) -> float:
        base = instruction.base
        if base in ("ATOM", "ATOMG"):
            return self.gpu.cache
        if base == "MEMBAR":  # until all that was written is there
            return self.gpu.memory
        if base in ("LDG", "LD"):
            return self._load(warp.at, instruction, time)
        if base in ("LDS", "LDSM"):
            turns = 4 if base == "LDSM" else max(1, instruction.bytes // 4)
            self.shared = max(self.shared, time) + turns
            return self.shared - time + SHARED
        if base == "LDGSTS":
            warp.copying = max(warp.copying, time + self._load(warp.at, instruction, time))
            return 20
        if base == "LDGDEPBAR":
            warp.copies.append(warp.copying)
            return 8
        if base == "DEPBAR":
            return self._copied(warp, instruction, time)
        if base in ("STS", "STG", "SHFL"):
            self.shared = max(self.shared, time) + max(1, instruction.bytes // 4)
        return _LATENCY.get(base, 0)

    def _copied(self, warp: Warp, instruction: Instruction, time: float) -> float:
        """Until all but so many groups of copies are there."""
        left = int(instruction.text.split(",")[-1].strip(), 16) if "0x" in instruction.text else 0
        done = warp.copies[: len(warp.copies) - left]
        return max([0.0, *(each - time + 1 for each in done[-1:])])

    def _load(self, at: int, instruction: Instruction, time: float) -> float:
        place, size = self.where(at, instruction)
        self.shared = max(self.shared, time) + max(1, instruction.bytes // 4)
        if place == "memory":
            self.memory = max(self.memory, time) + size / self.per_cycle
            return max(self.gpu.memory, self.memory + self.gpu.cache - time)
        if place == "cache":
            self.cached = max(self.cached, time) + size / self.gpu.cache_bytes
            return max(self.gpu.cache, self.cached + 60 - time)
        return max(self.gpu.level1, self.shared - time + self.gpu.level1)
