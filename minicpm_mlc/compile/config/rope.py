"""RoPE in a config.json: its base, the factors of LongRoPE, and the length that they reach."""

from __future__ import annotations

import math
from typing import Any

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.base.text import any_of
from minicpm_mlc.compile.config.keys import Keys, is_positive
from minicpm_mlc.compile.config.rope_scaling import SCALINGS, Rotary


def read_rope(keys: Keys, head_dim: int) -> dict[str, Any]:
    """RoPE from `rope_scaling` (published configs) or `rope_parameters` (newer transformers)."""
    scaling, parameters = keys.take("rope_scaling", None), keys.take("rope_parameters", None)
    if scaling and parameters and scaling != parameters:
        raise ConfigError(
            f"{keys.where}: rope_scaling and rope_parameters are both given and differ; keep one"
        )
    rope = Keys(
        parameters or scaling or {},
        f"{keys.where}: {'rope_parameters' if parameters else 'rope_scaling'}",
    )
    theta = keys.positive("rope_theta", rope.left.get("rope_theta", 10000.0))
    if rope.positive("rope_theta", theta) != theta:
        raise ConfigError(
            f"{keys.where}: rope_theta is {theta} at the top and another value in {rope.where}"
        )
    original = keys.take("original_max_position_embeddings", None)
    kind = _rope_type(rope)
    _accept(rope, "partial_rotary_factor", (1.0,))
    if kind == "default":
        _accept(rope, "factor", (1.0,))
        longest = keys.integer("max_position_embeddings")
        factors, scale = (1.0,) * (head_dim // 2), 1.0
    elif kind in SCALINGS:
        longest = keys.integer("max_position_embeddings")
        rope.where += f" of rope_type {kind}"
        original = _original(rope, original)
        rotary = Rotary(head_dim, theta, longest, _context(rope, original, longest))
        factors, scale = SCALINGS[kind](rope, rotary)
    else:
        original = _original(rope, original)
        longest = keys.integer("max_position_embeddings", original)
        factors, scale = _longrope(rope, head_dim, longest, original)
    rope.finish()
    return {
        "rope_theta": theta,
        "rope_factors": factors,
        "rope_attention_scale": scale,
        "max_position_embeddings": longest,
    }


def _rope_type(rope: Keys) -> str:
    known = {name: name for name in ("default", "longrope", *SCALINGS)} | {"su": "longrope"}
    kinds = [
        kind for kind in (rope.take("rope_type", None), rope.take("type", None)) if kind is not None
    ]
    if not kinds and not rope.left.keys() - {"rope_theta"}:
        return "default"
    found = {known.get(str(kind)) for kind in kinds} or {None}
    kind = found.pop()
    if kind is None or found:
        raise rope.refuse(
            "rope_type", kinds, f"{any_of(list(known))} (no other scaling is implemented)"
        )
    return kind


def _longrope(
    rope: Keys, head_dim: int, longest: int, original: Any
) -> tuple[tuple[float, ...], float]:
    """Factors, and the scale of cos and sin: sqrt(1 + ln(factor) / ln(original)), arXiv 2402.13753.

    `factor` is the key of this name, and where it is absent longest / original, as `transformers`
    has it for every model.
    """
    original = _context(rope, original, longest)
    short, long = rope.take("short_factor"), rope.take("long_factor")
    for key, factors in (("short_factor", short), ("long_factor", long)):
        if not isinstance(factors, list) or not all(is_positive(f) for f in factors):
            raise ConfigError(f"{rope.where}: {key} must be a list of positive numbers")
        if len(factors) != head_dim // 2:
            raise ConfigError(
                f"{rope.where}: {key} has {len(factors)} factors, expected {head_dim // 2}, half "
                "of head_dim"
            )
    if short != long:
        raise ConfigError(
            f"{rope.where}: short_factor and long_factor differ, which is not implemented"
        )
    ratio = max(1.0, longest / original)
    factor = _accept(rope, "factor", (1.0, ratio)) or ratio
    scale = math.sqrt(1 + math.log(factor) / math.log(original))
    _accept(rope, "attention_factor", (scale,))
    return tuple(float(f) for f in short), scale


def _context(rope: Keys, original: Any, longest: int) -> int:
    """A stated original context, else the longest one."""
    found = longest if original is None else original
    if type(found) is not int or not 2 <= found < 1 << 31:
        raise rope.refuse("original_max_position_embeddings", found, "a whole number of at least 2")
    return found


def _original(rope: Keys, outer: Any) -> Any:
    """The original context from `rope` or, in older files, from beside it."""
    inner = rope.take("original_max_position_embeddings", outer)
    if outer is not None and inner != outer:
        expected = f"{outer}, as beside {rope.where}; keep one"
        raise rope.refuse("original_max_position_embeddings", inner, expected)
    return inner


def _accept(rope: Keys, key: str, values: tuple[float, ...]) -> float | None:
    """The one of `values` that `key` has; None where it is absent. Raises ConfigError."""
    found = rope.take(key, None)
    if found is None:
        return None
    close = [v for v in values if is_positive(found) and math.isclose(found, v)]
    if not close:
        raise rope.refuse(key, found, " or ".join(f"{v:.6g}" for v in dict.fromkeys(values)))
    return close[0]
