"""Which scheme suits each linear of a checkpoint that stores its tensors in several forms."""

from __future__ import annotations

from collections.abc import Iterable

from minicpm_mlc.compile.checkpoint.tensor import Tensor, bytes_of
from minicpm_mlc.compile.checkpoint.weights import ENDS, Weights
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme

FLOATS = "w8"  # for linears that the checkpoint left as floats among quantised ones


def own_schemes(params: Iterable[Param], weights: Weights, linear: str) -> dict[str, Scheme]:
    """The linears that another scheme than `linear`, which suits most, suits better, by the first
    published tensor of each. A scheme is one for all tensors that are stacked in a linear.
    """
    if weights.schemes()[0] is None:
        return {}
    own: dict[str, Scheme] = {}
    for param in params:
        first = param.sources[0]
        if param.columns and first not in ENDS:
            name = _suiting([weights.tensors[source] for source in param.sources], linear)
            if name != linear:
                own[first] = SCHEMES[name]
    return own


def _suiting(tensors: list[Tensor], linear: str) -> str:
    """The smallest scheme that holds all integers; where none does, the largest that holds some."""
    stored = [tensor for tensor in tensors if tensor.quantised]
    if not stored:
        return FLOATS
    shared = [name for name in stored[0].holders if all(name in t.holders for t in stored)]
    if linear in shared:
        return linear
    return shared[0] if shared else max((tensor.scheme for tensor in stored), key=bytes_of)
