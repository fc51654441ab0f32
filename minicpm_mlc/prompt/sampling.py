"""How a next token is drawn, as people, files and APIs say it; runtime_py/sampler.py does it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.base.text import quoted
from minicpm_mlc.bundle.small_files import GENERATION_CONFIG, SmallFiles

# Option -> (lowest, highest, whether lowest itself is allowed).
_RANGES = {
    "temperature": (0.0, 100.0, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, 100.0, False),
    "presence_penalty": (-100.0, 100.0, True),
    "frequency_penalty": (-100.0, 100.0, True),
}


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. The defaults are the ones published with MiniCPM4."""

    temperature: float = 0.6  # 0: greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # tokens of prompt and answer
    presence_penalty: float = 0.0  # tokens of the answer alone
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: another text each time

    def __post_init__(self) -> None:
        for name, (low, high, closed) in _RANGES.items():
            number = _checked_number(name, getattr(self, name), low, high, closed)
            object.__setattr__(self, name, number)
        check_count("top_k", self.top_k)
        if self.seed is not None:
            check_count("seed", self.seed)

    @property
    def penalises(self) -> bool:
        """Whether any penalty is on."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


def _checked_number(name: str, value: object, low: float, high: float, closed: bool) -> float:
    number = _as_float(value)
    if not low <= number <= high or (number == low and not closed):
        raise SamplingError(
            f"{name} is {quoted(value)}; it must be a number in {'[' if closed else '('}{low:g}, "
            f"{high:g}]"
        )
    return number


def _as_float(value: object) -> float:
    """NaN for what is no number, infinity for an int that no float holds."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_count(name: str, value: object, lowest: int = 0) -> None:
    """Raises SamplingError unless the value is a whole number, `lowest` or more."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < lowest:
        raise SamplingError(
            f"{name} is {quoted(value)}; it must be a whole number, {lowest} or more"
        )


def default_sampling(files: SmallFiles) -> SamplingParams:
    """generation_config.json's sampling; what it leaves out is as published with MiniCPM4.
    do_sample false: greedy.
    """
    try:
        return SamplingParams(**files.generation.sampling)  # type: ignore[arg-type]
    except SamplingError as error:
        raise files.refuse(GENERATION_CONFIG, str(error)) from None
