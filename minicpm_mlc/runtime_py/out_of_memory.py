"""Memory that the system refuses: one error for what NumPy, TVM and the loader raise."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from minicpm_mlc.base.errors import BundleError, ContextError

REFUSED = re.compile("bad_alloc|cannot allocate memory|failed to map segment", re.IGNORECASE)
TAKE_LESS = (
    "give a smaller --context or fewer tokens, close other programs, or raise the limit that this "
    "process runs under (ulimit -v, the container's memory)"
)
P = ParamSpec("P")
R = TypeVar("R")


def within_memory(function: Callable[P, R]) -> Callable[P, R]:
    """The function, but ContextError is raised where it gets no memory."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (MemoryError, RuntimeError, BundleError) as error:
            if isinstance(error, MemoryError) or REFUSED.search(str(error)):
                said = str(error).strip().splitlines()[-1:] or ["out of memory"]
                text = f"the system gives no more memory ({said[0]}); {TAKE_LESS}"
                raise ContextError(text) from error
            raise

    return call
