"""The threads that compiled CPU libraries share: the pool in each of them, of which a process uses
one (targets/thread_pool says how it works).
"""

from __future__ import annotations

import ctypes
import os
import threading
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
        there = self.enter(threads, TASKS_FEW if rows < FEW_ROWS else TASKS_MANY)
        try:
            if there < threads:
                raise EngineError(
                    f"the system started {there - 1} of {threads - 1} threads; give fewer "
                    f"(--threads {there}), or raise the limit (ulimit -u)"
                )
            yield
        finally:
            self.leave()

    def enter(self, threads: int = 1, tasks: int = 1) -> int:
        """Waits for the caller's turn. Returns how many threads there are."""
        return self._library.minicpm_pool_enter(threads, tasks)

    def leave(self) -> None:
        """Ends the turn, after as many calls as of `enter`."""
        self._library.minicpm_pool_leave()

    def waited(self, measure: bool) -> float:
        """Seconds that threads had no task while a loop ran, of all threads together, since the
        last call; `measure`: whether they are measured from now on.

        Raises EngineError for a library that can't measure them.
        """
        if not hasattr(self._library, "minicpm_pool_waited"):
            raise EngineError(
                "this bundle's library doesn't measure its threads; compile it again to watch them"
            )
        self._library.minicpm_pool_waited.restype = ctypes.c_uint64
        return self._library.minicpm_pool_waited(measure) / 1e9


_shared: list[ThreadPool] = []  # of this process: that of the first library


def pool_for(library: Path) -> ThreadPool:
    """Has the loops of a library, which TVM has loaded, run on this process's pool."""
    path = library.resolve()
    if not _shared:
        _shared.append(ThreadPool(path))
    loaded = ctypes.CDLL(str(path))
    # TVM's runtime has put its own pool there
    ctypes.c_void_p.in_dll(loaded, LAUNCH).value = _shared[0].launch.value
    _unload(loaded)  # TVM does so too, in the end
    return _shared[0]


def _unload(library: ctypes.CDLL) -> None:
    """Takes one of a library's users away."""
    handle = ctypes.c_void_p(library._handle)
    if os.name == "nt":
        ctypes.CDLL("kernel32").FreeLibrary(handle)
    else:
        ctypes.CDLL(None).dlclose(handle)


_opening = threading.RLock()  # held while TVM works outside of any turn


@contextmanager
def forks_wait() -> Iterator[None]:
    """No fork of this process meanwhile, nor while another thread has a turn and is between two
    loops: the child would find locks of TVM's allocator taken, by threads that it doesn't have.
    """
    with _opening:
        yield


def _before_fork() -> None:
    _opening.acquire()
    for pool in _shared:
        pool.enter()


def _after_fork_in_parent() -> None:
    for pool in _shared:
        pool.leave()
    _opening.release()


if hasattr(os, "register_at_fork"):  # the child's pool begins anew by itself
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_opening.release,
    )
