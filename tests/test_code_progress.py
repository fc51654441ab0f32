"""The bar of a library goes on while LLVM works, which tells nothing of itself."""

from __future__ import annotations

import threading

import pytest

from minicpm_mlc.compile import code_progress
from minicpm_mlc.compile.code_progress import CODE, likely_share
from minicpm_mlc.targets import lowering

KERNELS = 10


def lower_all() -> None:
    for _ in range(KERNELS + 3):  # shape functions behind the kernels
        lowering._kernel_lowered.get()()


def test_steps_come_while_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_progress, "TICK", 0.001)
    monkeypatch.setattr(code_progress, "likely_share", lambda elapsed, expected: 0.5)
    seen: list[int] = []
    half = threading.Event()

    def report(steps: int) -> None:
        seen.append(steps)
        if sum(seen) >= KERNELS + CODE * KERNELS // 2:
            half.set()

    with code_progress.code_progress(KERNELS, report):
        lower_all()
        assert half.wait(30)  # LLVM
    assert seen[:KERNELS] == [1] * KERNELS
    assert sum(seen) == KERNELS + CODE * KERNELS
    assert seen[-1] == CODE * KERNELS // 2


def test_what_fails_is_not_reported_as_done() -> None:
    seen: list[int] = []
    with pytest.raises(ValueError), code_progress.code_progress(KERNELS, seen.append):
        lower_all()
        raise ValueError
    assert sum(seen) < KERNELS + CODE * KERNELS


def test_a_share_grows_and_is_never_the_whole() -> None:
    shares = [likely_share(elapsed, 2.0) for elapsed in (0, 0.5, 1, 2, 4, 8)]
    assert shares == sorted(shares) and shares[0] == 0 and 0.8 < shares[3] < 0.9 and shares[-1] < 1
    assert likely_share(1.0, 0.0) == 0
