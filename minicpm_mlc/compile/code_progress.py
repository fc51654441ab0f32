"""How far a library is: its kernels as they are lowered, then LLVM and the linker, which tell
nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import exp

from minicpm_mlc.targets.lowering import each_kernel

CODE = 3  # steps of a kernel in LLVM, which takes about three times as long as lowering
TICK = 0.2  # seconds

Report = Callable[[int], object]  # takes how many steps were done


@contextmanager
def code_progress(kernels: int, report: Report) -> Iterator[None]:
    """Around what makes a library: a step for each kernel that is lowered, then CODE for each at
    the pace that lowering makes likely.
    """
    began, left = time.perf_counter(), kernels
    estimate = Estimate(CODE * kernels, report)

    def lowered() -> None:
        nonlocal left
        if left:  # shape functions are lowered too, behind the kernels
            left -= 1
            report(1)
            if not left:
                estimate.begin(CODE * (time.perf_counter() - began))

    try:
        with each_kernel(lowered):
            yield
    finally:
        estimate.stop()
    report(left)
    estimate.finish()


class Estimate:
    """Reports the steps of silent work while it runs: ever slower, so that the last ones are left
    for its end.
    """

    def __init__(self, steps: int, report: Report) -> None:
        self._steps, self._left = steps, steps
        self._report = report
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> None:
        """The work begins, and will take about so long."""
        self._thread = threading.Thread(target=self._run, args=(seconds,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing is reported any more by itself."""
        self._over.set()
        if self._thread:
            self._thread.join()

    def finish(self) -> None:
        """Reports what is left."""
        self._report(self._left)

    def _run(self, seconds: float) -> None:
        began = time.perf_counter()
        while not self._over.wait(TICK):
            done = int(self._steps * likely_share(time.perf_counter() - began, seconds))
            if steps := done - (self._steps - self._left):
                self._left -= steps
                self._report(steps)


def likely_share(elapsed: float, expected: float) -> float:
    """Of work that was expected to take so many seconds: 0.86 when they are over, never 1."""
    return 1 - exp(-2 * elapsed / expected) if expected else 0.0
