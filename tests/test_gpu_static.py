"""What bench/gpu_static.py reads of machine code, and how it counts time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import branch_ways as ways
import gpu_shapes as shapes
import gpu_static as static
import pytest
import sass
import sm_simulator as simulator

# a load of 16 bytes (sets scoreboard 0), one of 4, an addition that waits for scoreboard 0, a loop
STALL, SETS, WAITS, NO_BOARDS = 1 << 41, 0 << 46, 1 << 52, 7 << 46 | 7 << 49
LINES = (
    ("LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", 2 * STALL | SETS | 7 << 49),
    ("LDG.E.CONSTANT R8, desc[UR4][R2.64+0x10]", 2 * STALL | 1 << 46 | 7 << 49),
    ("FADD R0, R0, R4", 4 * STALL | NO_BOARDS | WAITS),
    ("@P0 BRA `(.L_x_1)", 5 * STALL | NO_BOARDS),
    ("EXIT", 5 * STALL | NO_BOARDS),
)


def listing(instructions: tuple[tuple[str, int], ...] = LINES) -> str:
    lines = [".text.loads_kernel:", ".L_x_1:"]
    for i, (text, second) in enumerate(instructions):
        lines.append(f"        /*{16 * i:04x}*/   {text} ;  /* 0x{0:016x} */")
        lines.append(f"                              /* 0x{second:016x} */")
    return "\n".join(lines)


def test_instructions_loops_and_widths_are_read():
    code = sass.parsed(listing())["loads_kernel"]
    assert [each.base for each in code] == ["LDG", "LDG", "FADD", "BRA", "EXIT"]
    assert [each.stall for each in code] == [2, 2, 4, 5, 5]
    assert (code[0].sets, code[1].sets, code[2].sets) == (0, 1, sass.NONE)
    assert (code[2].waits, code[3].target, code[3].conditional) == (1, 0, True)
    assert sass.loops(code) == sass.innermost(code) == [(0, 3)]
    assert sass.wide_share(code) == 16 / 20


def cycles(turns: int, groups: int) -> float:
    code = sass.parsed(listing())["loads_kernel"]

    def decide(at: int, warp: Any) -> bool:
        warp.turns[at] = warp.turns.get(at, 0) + 1
        return warp.turns[at] < turns

    where = lambda at, _: ("memory", 512.0) if at == 0 else ("level1", 0.0)  # noqa: E731
    run = simulator.Simulator(code, simulator.GPUS["sm_90"], 4, decide, where)
    return run.cycles(groups, groups)


def test_one_warp_waits_for_the_memory_and_many_share_it():
    gpu = simulator.GPUS["sm_90"]
    once = cycles(1, 1)
    assert gpu.memory < once < 1.5 * gpu.memory
    assert 9 * once < cycles(10, 1) < 11 * once
    share = 512 * 4 * 16 * 10 / (gpu.bandwidth / gpu.sms / gpu.clock)  # of what 64 warps read
    assert share < cycles(10, 16) < 1.3 * share + once


def test_branches_that_never_end_are_an_error():
    with pytest.raises(RuntimeError, match="branches go round"):
        cycles(1 << 30, 1)


def test_only_the_last_workgroup_goes_on_behind_a_meeting():
    texts = ("BAR.RED.OR.DEFER_BLOCKING 0x0, P0", "@!P0 EXIT", "@P1 BRA `(.L_x_1)", "EXIT")
    code = sass.parsed(listing(tuple((text, STALL | NO_BOARDS) for text in texts)))["loads_kernel"]
    own = ways.Ways(shapes.Case("merge", "attend", 2, 32, merges=2), code, 2)
    first, last = simulator.Warp(0, 0), simulator.Warp(1, 1)
    assert own.taken(1, first) and not own.taken(1, last)
    assert [own.taken(2, last) for _ in range(4)] == [True, False, True, False]


def test_the_table_is_put_between_its_marks_and_nowhere_else(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"a\n{static.BEGIN}\nold\n{static.END}\nb\n")
    static.write_between(page, "| new |")
    assert page.read_text() == f"a\n{static.BEGIN}\n\n| new |\n\n{static.END}\nb\n"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="put them where the table goes"):
        static.write_between(page, "")
