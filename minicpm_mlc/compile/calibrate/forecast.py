"""How long calibration takes here: its multiplications at the speed that this machine shows now,
and what passes over the numbers besides.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from minicpm_mlc.compile.calibrate.rounding import SPAN, SWEEPS
from minicpm_mlc.compile.convert import Param

SIDE = 1024  # of the matrices that are multiplied to see the speed
TRIES = 5
# seconds of a core for each weight: choosing scales and rounding, a column at a time. Within 7 % of
# what SmolLM2-135M and MiniCPM4-0.5B took alone on one machine (docs/quality.md)
PASSES = 1.8e-6


def calibration_seconds(linears: Sequence[Param], tokens: int) -> float:
    """Of calibrating these linears on so many tokens, on all cores of this machine."""
    operations = sum(_operations(param.rows, param.columns, tokens) for param in linears)
    passes = PASSES * sum(param.weights for param in linears) / (os.cpu_count() or 1)
    return operations / multiplying_speed() + passes


def _operations(rows: int, columns: int, tokens: int) -> float:
    """Multiplications and additions: exact and rounded outputs; one triangle of the moments and
    their root; GPTQ, and the gradient of the sweeps, brought up to date by span and group.
    """
    outputs = 4 * tokens * rows * columns
    moments = tokens * columns**2 + columns**3 / 3
    rounding = rows * columns * (columns * (3 + 2 * SWEEPS) + 2 * SPAN * SWEEPS)
    return outputs + moments + rounding


def multiplying_speed() -> float:
    """float32 multiplications and additions a second of this machine, as it is now."""
    matrix = np.ones((SIDE, SIDE), np.float32)
    best = np.inf
    for _ in range(TRIES):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best
