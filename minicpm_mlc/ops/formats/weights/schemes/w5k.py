"""w5k: as w4k, with values of 5 bits: 5.5 bits, what llama.cpp's Q5_K holds."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights.high_bits import HighBits
from minicpm_mlc.ops.formats.weights.level_pairs import PairScheme


@dataclass(frozen=True)
class W5K(PairScheme):
    """Values 0..31."""

    name = "w5k"
    values = HighBits(bits=5, zero=0)


SCHEME = W5K()
