"""TVM's script builder `T`, imported when a kernel is built: what only describes a format can then
be imported without TVM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

Expr = Any  # a TIR expression; TVM's own union type says no more than this
Buffer = Any  # a TIR buffer, or one of float16 seen as float32 (ops/gpu/float16_bits.py)

if TYPE_CHECKING:
    from tvm.script import tirx as T
else:

    class _ScriptBuilder:
        """The module tvm.script.tirx, which it imports for the first name that it is asked for."""

        def __getattr__(self, name: str) -> Any:
            from tvm.script import tirx

            return getattr(tirx, name)

    T = _ScriptBuilder()

# hand-written loops: no pass may touch them
ATTRS = {"tirx.noalias": True, "tirx.is_scheduled": True}
# a running maximum before any number; finite, so that LOWEST - LOWEST is 0 and not NaN
LOWEST = -3e38


def typed(dtype: str, lanes: int) -> str:
    """The dtype of a vector of so many lanes; one lane is a scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Expr, lanes: int) -> Expr:
    """The scalar in every lane; one lane is a scalar."""
    return value if lanes == 1 else T.broadcast(value, lanes)
