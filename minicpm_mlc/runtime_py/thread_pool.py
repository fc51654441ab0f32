"""The threads that compiled CPU libraries share: the pool in each of them, of which a process uses
one (targets/thread_pool says how it works).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minicpm_mlc.base.errors import EngineError

# Tasks of a thread in each loop. Few rows stream the weights, which wants long runs of them; with
# many, shorter tasks cost nothing and leave less to wait for.
FEW_ROWS = 4
TASKS_FEW, TASKS_MANY = 2, 16
LAUNCH = "__TVMBackendParallelLaunch"  # a library's pointer to what runs its loops


class ThreadPool:
    """The pool of one library, which stays loaded, as the threads run its code."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self.launch = ctypes.cast(self._library.minicpm_pool_launch, ctypes.c_void_p)

    @contextmanager
    def turn(self, threads: int, rows: int = FEW_ROWS) -> Iterator[None]:
        """Waits until no other caller computes; loops that this thread then runs have `threads`
        threads. `rows`: how many rows the kernels work on.

        Raises EngineError where the system starts no more threads.
        """
        tasks = TASKS_FEW if rows < FEW_ROWS else TASKS_MANY
        there = self._library.minicpm_pool_enter(threads, tasks)
        try:
            if there < threads:
                raise EngineError(
                    f"the system started {there - 1} of {threads - 1} threads; give fewer "
                    f"(--threads {there}), or raise the limit (ulimit -u)"
                )
            yield
        finally:
            self._library.minicpm_pool_leave()


_shared: list[ThreadPool] = []  # of this process: that of the first library


def pool_for(library: Path) -> ThreadPool:
    """Has the loops of a library, which TVM has loaded, run on this process's pool."""
    path = library.resolve()
    if not _shared:
        _shared.append(ThreadPool(path))
    loaded = ctypes.CDLL(str(path))
    # TVM's runtime has put its own pool there
    ctypes.c_void_p.in_dll(loaded, LAUNCH).value = _shared[0].launch.value
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(loaded._handle))  # TVM unloads it in the end
    return _shared[0]
