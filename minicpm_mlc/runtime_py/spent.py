"""Where the time of a library's calls goes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.protocols import Library


@dataclass
class Spent:
    """Seconds of a library's calls, counted from its beginning.

    `called`: from a call of compiled code until it came back; `waited`: from then on until its
    results were read. A CPU's call comes back when it is done. A GPU's comes back when its kernels
    are handed over; they run meanwhile, so `waited` is what handing over doesn't hide.
    """

    called: float = 0.0
    waited: float = 0.0

    def copy(self) -> Spent:
        """What was spent until now."""
        return Spent(self.called, self.waited)

    def since(self, before: Spent) -> Spent:
        """What was spent after that copy was made."""
        return Spent(self.called - before.called, self.waited - before.waited)

    def add(self, other: Spent) -> None:
        """Counts another one's time too."""
        self.called += other.called
        self.waited += other.waited

    def mark(self) -> Lap:
        """Begins to time a call."""
        return Lap(self)

    def shares(self, seconds: float, in_process: bool) -> dict[str, float]:
        """Of so many seconds around these calls: kernels, launches (a GPU's), and the host's
        Python. They add up to 1.
        """
        host = max(0.0, seconds - self.called - self.waited)
        whole = host + self.called + self.waited or 1.0
        if in_process:
            return {"kernels": (self.called + self.waited) / whole, "host": host / whole}
        kernels, launches = self.waited / whole, self.called / whole
        return {"kernels": kernels, "launches": launches, "host": host / whole}


def spent_in(library: Library) -> Spent:
    """The calls of a library; of one on another machine nothing is known."""
    return library.local.spent if library.local else Spent()


class Lap:
    """One call that is timed."""

    __slots__ = ("_called", "_spent")

    def __init__(self, spent: Spent) -> None:
        self._spent = spent
        self._called = time.perf_counter()

    def returned(self) -> None:
        """Compiled code came back."""
        now = time.perf_counter()
        self._spent.called += now - self._called
        self._called = now

    def read(self) -> None:
        """Its results were read."""
        self._spent.waited += time.perf_counter() - self._called
