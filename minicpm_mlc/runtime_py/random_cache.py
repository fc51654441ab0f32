"""A cache filled with random numbers, so that a depth can be measured without computing the tokens before it.

A kernel's time doesn't depend on the numbers. Sparse attention selects blocks from all over the context then, its dearest case.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SCALE = 0.01  # of int8 keys and values
MEAN = 0.25  # deviation of the mean of 16 normal numbers


def fill_cache(engine: Any, depth: int, seed: int = 0) -> None:
    """Bring `engine`'s cache to `depth` tokens of random keys and values; the tokens themselves count as zeros."""
    engine.truncate(0)
    model = engine._model
    model.sequence.reserve(depth)
    model.sequence.append([0] * depth)
    pages = model.sequence.page_table
    rng = np.random.default_rng(seed)
    for tensor in model._pools.tensors:
        pool = np.from_dlpack(tensor)
        for page in pages:
            _fill(pool[page], rng)


def _fill(page: np.ndarray, rng: np.random.Generator) -> None:
    """One page of a pool: keys or values of any format, scales [heads, tokens], or float32 means [heads, 4, width]."""
    if page.dtype.kind in "iu":
        page[...] = rng.integers(-127, 128, page.shape, page.dtype)
    elif page.ndim == 2:
        page[...] = SCALE
    else:
        page[...] = rng.standard_normal(page.shape, np.float32) * (MEAN if page.shape[1] == 4 else 1)
