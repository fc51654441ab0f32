"""What bench/gpu_static.py reads of machine code, and how it counts time."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import branch_ways as ways
import gpu_floors as floors
import gpu_shapes as shapes
import gpu_static as static
import load_origins as origins
import pytest
import sass
import sm_simulator as simulator

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"

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


def committed() -> str:
    return PAGE.read_text().partition(static.BEGIN)[2].partition(static.END)[0]


def test_the_committed_table_keeps_the_floors_and_one_that_does_not_is_named():
    text = committed()
    assert floors.faults(text) == []
    slow = re.sub(r"(\| down \|.*?\| )0(\.\d\d a weight)", r"\g<1>1\2", text)
    assert [line.partition(":")[0] for line in floors.faults(slow)] == ["down"]
    assert "no prompt is named .*" in floors.faults("\n\n".join(text.split("\n\n")[:3]))


@pytest.mark.campaign
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA toolkit")
def test_the_kernels_are_those_of_the_committed_table():
    assert static.table(static.ARCHS) == committed().strip()


def test_a_load_is_followed_to_the_argument_that_its_address_comes_from():
    source = (
        "void __launch_bounds__(32) loads_kernel(float* __restrict__ a, int n, uint* b, uint* c) {"
    )
    kinds = origins.pointers(source, "sm_90")["loads_kernel"]
    assert kinds == {0x210: "float", 0x220: "uint", 0x228: "uint"}
    assert origins.stored(kinds) == {0x220}
    texts = (
        "ULDC.64 UR4, c[0x0][0x208]",
        "LDC.64 R2, c[0x0][0x220]",
        "IMAD.WIDE R6, R8, 0x10, R2",
        "LDG.E.128.CONSTANT R8, desc[UR4][R6.64]",
        "IMAD.WIDE R6, R8, 0x4, R6",  # R8 is a number that was read
        "LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64+0x20]",
        "IADD3 R2, P0, R8, c[0x0][0x210], RZ",
        "IADD3.X R3, RZ, c[0x0][0x214], RZ, P0, !PT",
        "LDG.E R4, desc[UR4][R2.64]",
    )
    code = sass.parsed(listing(tuple((text, STALL | NO_BOARDS) for text in texts)))["loads_kernel"]
    assert list(origins.loads(code, {0x220})) == [code[3], code[5]]
    assert list(origins.loads(code, {0x210})) == [code[8]]
