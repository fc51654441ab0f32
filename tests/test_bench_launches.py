"""bench/launch_overhead.py measures a chain of launches, on each device that is here."""

from __future__ import annotations

import launch_overhead as bench
import pytest
from gpu_cases import device_named


@pytest.mark.parametrize("device", ["vulkan", "opencl"])
def test_a_launch_takes_time_until_it_returns_and_more_until_it_is_done(device: str):
    if device_named(device) is None:
        pytest.skip(f"no {device} device with its runtime: make devices")
    found = bench.measure(device, launches=20, repeats=1)
    assert 0 < found["enqueued"] <= found["done"]
    assert ("on the device" in found) == (device == "vulkan")
