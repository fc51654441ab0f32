"""A cache filled with random numbers, so that a depth can be measured without computing the tokens
before it.

A kernel's time doesn't depend on the numbers. Sparse attention selects blocks from all over the
context then, its most expensive case.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.bundle.manifest import SCALE_ROWS

SCALE = 0.01  # of int8 keys and values
MEAN = 0.25  # deviation of the mean of 16 normal numbers


def fill_cache(engine: Any, depth: int, seed: int = 0) -> None:
    """Bring `engine`'s cache to `depth` tokens of random keys and values; the tokens themselves
    count as zeros.

    Raises BundleError where the cache isn't in this process's memory.
    """
    manifest, model = engine.manifest, engine._model
    device = manifest.target["device"]
    if not DEVICE_RUNTIMES[device].in_process:
        raise BundleError(
            f"random numbers can't be written into the cache of {device}: --operators works for "
            "--device cpu alone, "
            "and else try without --random-cache"
        )
    engine.truncate(0)
    model.sequence.reserve(depth)
    model.sequence.append([0] * depth)
    rng = np.random.default_rng(seed)
    kinds = [
        kind
        for kind in ("k", "v", "means")
        if kind in manifest.kv_layout
        for _ in range(manifest.model["num_layers"])
    ]
    for kind, tensor in zip(kinds, model._pools.tensors, strict=True):
        pool = np.from_dlpack(tensor)
        for page in model.sequence.page_table:
            fill_page(pool[page], kind, rng)


def fill_page(page: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Random numbers for one page of a pool of "k", "v" or "means", in its format
    (ops/formats/kv.py).
    """
    numbers = rng.standard_normal(page.shape, np.float32)
    if page.dtype == np.uint16:  # bfloat16's bits
        page[...] = numbers.view(np.uint32) >> 16
    elif page.dtype != np.int8:
        page[...] = numbers * (MEAN if kind == "means" else 1)
    else:
        page[...] = np.clip(numbers / SCALE, -127, 127)
        if kind == "k":
            scales = np.full((len(page), 2 * SCALE_ROWS, page.shape[-1] // 4), SCALE, np.float32)
            page[:, -2 * SCALE_ROWS :] = scales.view(np.int8)
