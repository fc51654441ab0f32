"""How far a long command is: bars on a terminal, a line per stage elsewhere. Always on standard
error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

Progress = Callable[[str, int, int], None]  # a stage's name, how much of it is done, its total


class Bars:
    """`with Bars() as progress: progress("quantising", done, total)`. A stage ends when done
    reaches total.
    """

    def __enter__(self) -> Bars:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, *times, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)


class Lines:
    """The same as plain lines: one when a stage begins, one when it ends."""

    def __enter__(self) -> Lines:
        self._started: dict[str, float] = {}
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._started:
            self._started[stage] = time.perf_counter()
            print(f"{stage}...", file=sys.stderr, flush=True)
        if done >= total:
            print(
                f"{stage}: {time.perf_counter() - self._started[stage]:.1f} s",
                file=sys.stderr,
                flush=True,
            )


class Steps:
    """A stage of so many steps: call it with how many are done now."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress = progress
        self._stage = stage
        self._done, self._total = 0, total
        self(0)

    def __call__(self, steps: int) -> None:
        self._done += steps
        self._progress(self._stage, self._done, self._total)


def no_progress(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def show_progress() -> Bars | Lines:
    """Bars if standard error is a terminal, lines otherwise."""
    return Bars() if sys.stderr.isatty() else Lines()
