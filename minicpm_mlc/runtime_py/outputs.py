"""What a compiled call gives back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Outputs(NamedTuple):
    """Logits float32 [rows, vocab]; with a draft head in the bundle, its `features` float32 [all
    rows, F]; from sparse rows also the blocks that each layer read, int32 [rows, kv_heads, budget],
    ascending, then -1."""

    logits: np.ndarray
    features: np.ndarray | None = None
    selected: tuple[np.ndarray, ...] = ()
