"""One answer that waits, runs or is over."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from minicpm_mlc.runtime_py.generation import Generation
from minicpm_mlc.runtime_py.slots import Slot

_arrivals = itertools.count()


class Progress(NamedTuple):
    """Tokens of the prompt that are computed, of those that were to be."""

    done: int
    total: int


class Over(NamedTuple):
    """The last that is heard of a task: None, or the error that ended it."""

    error: BaseException | None


@dataclass(eq=False)
class Task:
    """`emit` is told, in the thread that computes, what the generation's reader makes of its
    tokens, Progress before it, and Over in the end; it returns soon and doesn't raise.
    """

    generation: Generation
    emit: Callable[[object], None]
    client: str = ""  # whose it is: clients take turns
    driven: bool = False  # it goes on though nobody waits for it
    arrival: int = field(default_factory=lambda: next(_arrivals))
    slot: Slot | None = None  # that it runs on
    cancelled: bool = False
    over: bool = False

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes."""
        if not self.over:
            self.over = True
            self.emit(Over(error))
