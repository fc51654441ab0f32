"""What a compiled call gives back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minicpm_mlc.runtime_py.device_rows import DeviceRow, DeviceRows

Row = np.ndarray | DeviceRow  # logits float32 [vocab]


class Outputs(NamedTuple):
    """Logits float32 [rows, vocab]; with a draft head in the bundle, its `features` float32 [all
    rows, F]; from sparse rows also the blocks that each layer read, int32 [rows, kv_heads, budget],
    ascending, then -1."""

    logits: np.ndarray
    features: np.ndarray | None = None
    selected: tuple[np.ndarray, ...] = ()


class Decoded(NamedTuple):
    """The same of a decode step or a verified tree, whose logits stay on a GPU until they are
    read.
    """

    logits: np.ndarray | DeviceRows
    features: np.ndarray | None = None
    selected: tuple[np.ndarray, ...] = ()
