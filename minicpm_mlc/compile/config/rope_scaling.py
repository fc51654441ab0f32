"""RoPE scalings that follow from a few numbers: linear, Llama 3's and YaRN, as `transformers` has
them. Each gives the divisor of every rotary frequency, head_dim / 2 numbers, and the scale of cos
and sin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from minicpm_mlc.compile.config.keys import Keys

Scaled = tuple[tuple[float, ...], float]


@dataclass(frozen=True)
class Rotary:
    """What is scaled: `theta` is RoPE's base, `original` the context that it was trained for, and
    `longest` the one that config.json names.
    """

    head_dim: int
    theta: float
    longest: int
    original: int

    def frequencies(self) -> list[float]:
        """Radians per token of each pair."""
        return [self.theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]


def linear(rope: Keys, rotary: Rotary) -> Scaled:
    """Positions are divided by `factor`."""
    return (rope.positive("factor"),) * (rotary.head_dim // 2), 1.0


def llama3(rope: Keys, rotary: Rotary) -> Scaled:
    """Waves longer than original / low_freq_factor are stretched by `factor`, those shorter than
    original / high_freq_factor are not, the others in between.
    """
    factor = rope.positive("factor")
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if low >= high:
        raise rope.refuse("low_freq_factor", low, f"less than high_freq_factor, {high}")

    def divisor(frequency: float) -> float:
        turns = rotary.original * frequency / (2 * math.pi)  # within the original context
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return 1 / ((1 - kept) / factor + kept)

    return tuple(map(divisor, rotary.frequencies())), 1.0


def yarn(rope: Keys, rotary: Rotary) -> Scaled:
    """Pairs that turn more than `beta_fast` times in the original context are kept, those that turn
    less than `beta_slow` times are stretched by `factor`, the others in between; arXiv 2309.00071.
    """
    if rotary.theta <= 1:
        raise rope.refuse("rope_theta", rotary.theta, "more than 1")
    factor = _or_default(rope, "factor", rotary.longest / rotary.original)
    fast, slow = _or_default(rope, "beta_fast", 32.0), _or_default(rope, "beta_slow", 1.0)
    first, last = (_pair_of(turns, rotary) for turns in (fast, slow))
    if rope.boolean("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary.head_dim - 1)
    width = last - first or 0.001
    ramps = [min(max((i - first) / width, 0.0), 1.0) for i in range(rotary.head_dim // 2)]
    scale = _or_default(rope, "attention_factor", _yarn_scale(rope, factor))
    return tuple(1 / (ramp / factor + 1 - ramp) for ramp in ramps), scale


def _or_default(rope: Keys, key: str, default: float) -> float:
    """A positive number, or the default where the key is absent or null."""
    if rope.left.get(key) is None:
        rope.take(key, None)
        return default
    return rope.positive(key)


def _pair_of(turns: float, rotary: Rotary) -> float:
    """The pair, a broken number, that turns so often in the original context."""
    return (
        rotary.head_dim
        * math.log(rotary.original / (turns * 2 * math.pi))
        / (2 * math.log(rotary.theta))
    )


def _yarn_scale(rope: Keys, factor: float) -> float:
    """mscale and mscale_all_dim, which DeepSeek's configs have, count together or not at all."""
    both = [_or_default(rope, key, 0.0) for key in ("mscale", "mscale_all_dim")]

    def temperature(times: float) -> float:
        return 0.1 * times * math.log(factor) + 1 if factor > 1 else 1.0

    return temperature(both[0]) / temperature(both[1]) if all(both) else temperature(1.0)


SCALINGS: dict[str, Callable[[Keys, Rotary], Scaled]] = {
    "linear": linear,
    "llama3": llama3,
    "yarn": yarn,
}
