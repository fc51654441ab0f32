"""Which way a kernel's branches go in the simulator: loops as often as a case says, over what
seldom has to be done, and into what only the last workgroup of all does.
"""

from __future__ import annotations

from gpu_shapes import Case
from sass import Code, innermost, loops
from sm_simulator import Warp


class Ways:
    """Of one launch; `groups` workgroups are simulated, the last of which is the last to come to
    its meetings.
    """

    def __init__(self, case: Case, code: Code, groups: int) -> None:
        self.case, self.code, self.groups = case, code, groups
        self.first, self.last = hottest(code)
        self.around = {b for _, b in loops(code)} - {b for _, b in innermost(code)}
        self.meetings = [i for i, each in enumerate(code) if each.opcode.startswith("BAR.RED.OR")]
        self.passes: dict[int, bool] = {}  # every other one of a search is left out

    def taken(self, at: int, warp: Warp) -> bool:
        """Whether a warp goes where a conditional branch, or the end, leads."""
        target = self.code[at].target
        if target is None or target > at:
            return self._ahead(at, len(self.code) if target is None else target, warp)
        behind = bool(self.meetings) and at > self.meetings[0]
        turns = self.case.turns if at == self.last else 1 if at in self.around else self.case.others
        turns = self.case.merges if behind else turns
        done = warp.turns.get(at, 0) + 1
        warp.turns[at] = 0 if done >= turns else done
        return done < turns

    def _ahead(self, at: int, target: int, warp: Warp) -> bool:
        if self.code[at].opcode.startswith("BRA.DIV"):
            return False  # its warp is together
        if self.meetings and at > self.meetings[0]:
            return warp.group != self.groups - 1
        if any(at < meeting < target for meeting in self.meetings):
            return len(self.meetings) > self.case.rounds
        counted = sum(self.code[i].opcode.startswith("BAR.RED.POPC") for i in range(at, target))
        if self.case.searches and counted in range(1, 5):
            return self.passes.setdefault(at, len(self.passes) % 2 == 1)
        if self.case.searches and not counted and target - at > FAR:
            return True
        return self.case.skips and self.first <= at <= self.last and target <= len(self.code) - 1


FAR = 500  # instructions: the way of more scores than threads


def hottest(code: Code) -> tuple[int, int]:
    """The innermost loop with most instructions, of those on tensor cores if there are some; all of
    the code where there is none.
    """

    def weight(loop: tuple[int, int]) -> tuple[bool, int]:
        begin, end = loop
        return any(each.base in ("HMMA", "IMMA") for each in code[begin:end]), end - begin

    return max(innermost(code), key=weight, default=(0, len(code) - 1))
