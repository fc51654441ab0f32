"""A cache filled with random numbers, so that a depth can be measured without computing the tokens
before it.

A kernel's time doesn't depend on the numbers. Sparse attention selects blocks from all over the
context then, its most expensive case.
"""

from __future__ import annotations

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.bundle.state import pool_places
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.runtime_py.engine import Engine

MEAN = 0.25  # deviation of the mean of 16 normal numbers
PAGES = 64  # filled at once


def fill_cache(engine: Engine, depth: int, seed: int = 0) -> None:
    """Bring `engine`'s cache to `depth` tokens of random keys and values; the tokens themselves
    count as zeros.

    Raises BundleError where the cache isn't in this process's memory.
    """
    manifest = engine.manifest
    model = engine.model
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
    rng, kv = np.random.default_rng(seed), KVFormat.of_dtype(manifest.kv_dtype)
    tensors = map(np.from_dlpack, model.cache.pools.tensors)
    pools = dict(zip(pool_places(manifest.state), tensors, strict=True))
    for (name, layer), pool in pools.items():
        if name == "keys":
            fill_pages(kv, pool, pools["values", layer], model.sequence.page_table, rng)
        elif name == "means":
            for page in model.sequence.page_table:
                pool[page] = MEAN * rng.standard_normal(pool.shape[1:], np.float32)


def fill_pages(
    kv: KVFormat,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    pages: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Random keys and values in these `pages` int [n] of one layer's pools."""
    _, kv_heads, _, head_dim = v_pages.shape
    for start in range(0, len(pages), PAGES):
        part = pages[start : start + PAGES]
        k_pages[part], v_pages[part] = kv.random_pages(rng, len(part), kv_heads, head_dim)
