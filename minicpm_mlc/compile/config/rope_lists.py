"""The LongRoPE factors of the published models, one per pair of a head's dimensions: head_dim / 2
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# MiniCPM4-0.5B (head_dim 64); also MiniCPM-1B's list.
FACTORS_05B = tuple(
    float(f)
    for f in """
    1.0004360675811768 1.0668443441390991 1.1631425619125366 1.3025742769241333 1.5040205717086792
    1.7941505908966064 2.2101221084594727 2.802666664123535 3.6389970779418945 4.804192543029785
    6.39855432510376 8.527148246765137 11.277542114257812 14.684998512268066 18.69317054748535
    23.13019371032715 27.72362518310547 32.1606559753418 36.168827056884766 39.57627868652344
    42.32667541503906 44.45526885986328 46.04962921142578 47.21482849121094 48.05115509033203
    48.64370346069336 49.05967712402344 49.34980392456055 49.551246643066406 49.69068145751953
    49.78697967529297 49.85338592529297
    """.split()
)


def sigmoid_factors(low: float, height: float) -> tuple[float, ...]:
    """The 64 factors low + height * sigmoid(k * (i - 31.5)): the published 8B lists are exactly of
    this form.
    """
    k = 0.18747656542932134
    return tuple(low + height / (1 + math.exp(-k * (i - 31.5))) for i in range(64))


def extend_factors(factors: tuple[float, ...], times: float) -> tuple[float, ...]:
    """The published 128K list of a model trained on 128K / `times` tokens.

    Each factor is multiplied by YaRN's blend between untouched high frequencies (ramp 0) and fully
    stretched low ones (ramp 1); 20 and 46 are YaRN's correction range for 64 pairs, base 10000 and
    a context of 4096.
    """
    ramps = (min(max((i - 20) / 26, 0.0), 1.0) for i in range(len(factors)))
    return tuple(
        f * round(1 / ((1 - ramp) + ramp / times), 4)
        for f, ramp in zip(factors, ramps, strict=True)
    )


FACTORS_8B = sigmoid_factors(0.9157734670477344, 30.190175865146276)
FACTORS_8B_128K = extend_factors(FACTORS_8B, 4)
FACTORS_41_8B = sigmoid_factors(0.8288299491615249, 62.34913451640336)
FACTORS_41_8B_128K = extend_factors(FACTORS_41_8B, 2)

LONGER_CONTEXT = 131072  # tokens that the longer lists reach
LONGER_LISTS = (
    (FACTORS_8B, FACTORS_8B_128K),
    (FACTORS_41_8B, FACTORS_41_8B_128K),
)  # (native, longer)


def same_factors(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two lists are one: formulas and published decimals differ in the last digits, some
    files round to float32.
    """
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True)
    )


def longer_list(factors: Sequence[float]) -> tuple[float, ...] | None:
    """The list published for LONGER_CONTEXT tokens of the model with these factors, native or that
    list already.
    """
    families = (
        family for family in LONGER_LISTS if any(same_factors(factors, known) for known in family)
    )
    return next((longer for _, longer in families), None)
