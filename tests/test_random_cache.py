"""A cache of random numbers holds what its format means."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.bundle.state import StateEntry
from minicpm_mlc.ops.formats.kv import F32, KV_FORMATS

PAGES, HEADS, WIDTH = 3, 2, 32


class FakeSequence:
    def __init__(self):
        self.page_table = []

    def reserve(self, length):
        self.page_table = list(range(-(-length // PAGE_SIZE)))

    def append(self, token_ids):
        self.tokens = token_ids


def fake_engine(kv, device="cpu"):
    pools = [*kv.empty(PAGES, HEADS, WIDTH), np.zeros((PAGES, HEADS, 4, WIDTH), np.float32)]
    state = [
        StateEntry(name, (0,), pool.shape[1:], str(pool.dtype))
        for name, pool in zip(("keys", "values", "means"), pools, strict=True)
    ]
    manifest = SimpleNamespace(kv_dtype=kv.dtype, state=state, target={"device": device})
    cache = SimpleNamespace(pools=SimpleNamespace(tensors=pools))
    model = SimpleNamespace(sequence=FakeSequence(), cache=cache)
    return SimpleNamespace(manifest=manifest, model=model, truncate=lambda length: None), pools


@pytest.mark.parametrize("kv", KV_FORMATS.values())
def test_keys_and_values_are_normal_numbers_in_every_format(kv):
    engine, (keys, values, means) = fake_engine(kv)
    fill_cache(engine, 2 * PAGE_SIZE)
    for pool in kv.read(keys, values):
        assert pool[:2].std() == pytest.approx(1, abs=0.2)
        assert not pool[2].any()
    assert means[:2].std() == pytest.approx(0.25, abs=0.05)


def test_a_cache_in_a_devices_memory_is_refused():
    engine, _ = fake_engine(F32, "opencl")
    with pytest.raises(BundleError, match="without --random-cache"):
        fill_cache(engine, 10)
