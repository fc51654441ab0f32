"""TVM's allocator keeps every tensor that was freed, for the next one of exactly its size; results
have a size for each number of rows. This bounds what it keeps.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Hashable, Iterable

import numpy as np

from minicpm_mlc.runtime_py.device_rows import DeviceRows
from minicpm_mlc.runtime_py.ffi import tvm_ffi

KEPT_BYTES = 16 << 20  # of results of all sizes
MOST_CALLS = 4096  # that are remembered
_disturbed = [0]
_seen: set[Hashable] = set()
_numbers = itertools.count()
# Held around each call on a GPU: what one gives back, another's recording must not use meanwhile.
device_calls = threading.RLock()


def new_number() -> int:
    """What tells an object from all others of this process, those before it too: an id comes
    again.
    """
    return next(_numbers)


class KeptResults:
    """The sizes of results that the allocator may keep: at most `most` bytes and the last
    call's.
    """

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most, self._sizes = most, set[int]()

    def note(self, results: Iterable[np.ndarray | DeviceRows]) -> None:
        """These will be freed."""
        self._sizes.update(each.nbytes for each in results)

    def make_room(self) -> None:
        """Before a call: empties the allocator if it may keep too much."""
        if sum(self._sizes) > self._most:
            self._sizes.clear()
            empty_allocator()


def empty_allocator() -> None:
    """Give the system back what TVM's allocator keeps for all libraries of this process."""
    disturbed()
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
    if os.name == "nt":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's keeps freed memory too
    if trim:
        trim(0)


def disturbed() -> None:
    """Kernels were called, or memory was given back: the scratch memory that TVM keeps for all
    libraries of this process may lie elsewhere now, and what was recorded with it is worthless.
    """
    _disturbed[0] += 1
    _seen.clear()


def called(call: Hashable) -> None:
    """The same of a call that `call` tells from others, its function and shapes, unless this thread
    made it before: what it takes is there then. Scratch memory only grows, and moves in doing so.
    """
    own = threading.get_ident(), call
    if own in _seen:
        return
    _disturbed[0] += 1
    if len(_seen) >= MOST_CALLS:
        _seen.clear()
    _seen.add(own)


def seen(call: Hashable) -> bool:
    """Whether this thread made that call, and nothing was given back since."""
    return (threading.get_ident(), call) in _seen


def disturbances() -> int:
    """How often what was recorded became worthless."""
    return _disturbed[0]
