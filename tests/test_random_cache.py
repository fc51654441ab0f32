"""A cache of random numbers holds what its format means."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bench.random_cache import fill_cache
from minicpm_mlc.bundle.manifest import KV_STORAGE, PAGE_SIZE
from minicpm_mlc.ops.formats.kv import key_shape, read_definition

PAGES, HEADS, WIDTH = 3, 2, 32


class FakeSequence:
    def __init__(self):
        self.page_table = []

    def reserve(self, length):
        self.page_table = list(range(-(-length // PAGE_SIZE)))

    def append(self, token_ids):
        self.tokens = token_ids


def fake_engine(kv_dtype, device="cpu"):
    storage = KV_STORAGE[kv_dtype]
    pools = [
        np.zeros((PAGES, *key_shape(kv_dtype, HEADS, WIDTH)), storage),
        np.zeros((PAGES, HEADS, PAGE_SIZE, WIDTH), storage),
        np.zeros((PAGES, HEADS, 4, WIDTH), np.float32),
    ]
    manifest = SimpleNamespace(
        kv_layout={"k": [], "v": [], "means": []},
        model={"num_layers": 1},
        target={"device": device},
    )
    cache = SimpleNamespace(pools=SimpleNamespace(tensors=pools))
    model = SimpleNamespace(sequence=FakeSequence(), cache=cache)
    return SimpleNamespace(manifest=manifest, model=model, truncate=lambda length: None), pools


@pytest.mark.parametrize("kv_dtype", KV_STORAGE)
def test_keys_and_values_are_normal_numbers_in_every_format(kv_dtype):
    engine, (keys, values, means) = fake_engine(kv_dtype)
    fill_cache(engine, 2 * PAGE_SIZE)
    for pool in read_definition(keys, values):
        assert pool[:2].std() == pytest.approx(1, abs=0.2)  # int8 cuts off at 1.27
        assert not pool[2].any()
    assert means[:2].std() == pytest.approx(0.25, abs=0.05)


def test_a_cache_in_a_devices_memory_is_refused():
    engine, _ = fake_engine("float32", "opencl")
    with pytest.raises(BundleError, match="without --random-cache"):
        fill_cache(engine, 10)
