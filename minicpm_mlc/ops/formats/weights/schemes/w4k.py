"""w4k: 4 bits a weight, scales and minimums of 6 bits for each 32 columns in blocks of 256: 4.5
bits, what llama.cpp's Q4_K holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.formats.weights.level_pairs import PairScheme
from minicpm_mlc.ops.formats.weights.nibbles import Nibbles


@dataclass(frozen=True)
class W4K(PairScheme):
    """Values 0..15."""

    name = "w4k"
    values = Nibbles(zero=0)


SCHEME = W4K()
