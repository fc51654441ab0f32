"""How near an answer's decode steps came to what the device's memory allows, and where the rest of
their time went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.bundle.manifest import READ_KERNEL, Bundle
from minicpm_mlc.runtime_py.memory_reader import MemoryReader
from minicpm_mlc.runtime_py.traffic import bundle_traffic

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.engine import Engine
    from minicpm_mlc.runtime_py.protocols import KernelAccess

SAMPLES = 3


@dataclass(frozen=True)
class Roofline:
    """`bytes` that the calls of the model read at least, in `seconds` of decoding, from memory that
    gives `bandwidth` bytes per second; `parts` are shares of the seconds (runtime_py/spent.py).
    """

    bytes: float
    seconds: float
    bandwidth: float
    parts: dict[str, float]

    @property
    def share(self) -> float:
        """Of the bound that memory's speed sets."""
        return self.bytes / self.bandwidth / self.seconds

    def text(self) -> str:
        """One line for a person."""
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.parts.items())
        return (
            f"decode ran at {self.share:.0%} of the {self.bandwidth / 1e9:.1f} GB/s that memory "
            f"gives; its time: {parts}"
        )


def measured_bandwidth(local: KernelAccess) -> float:
    """Bytes per second that a device's memory gives, by its library's own kernel. Raises
    BundleError for a library without one, DeviceError where the device has no room.
    """
    reader = MemoryReader(local.kernel(READ_KERNEL), memory=local.memory)
    reader.sample(SAMPLES)
    return reader.best


def roofline(engine: Engine, bandwidth: float) -> Roofline | None:
    """Of the call that began last; None before its first decode step. A verified tree counts as one
    step; what a drafter reads isn't counted.
    """
    stats, manifest = engine.stats, engine.manifest
    calls = stats.speculation.plain_steps + stats.speculation.rounds
    if not calls or not stats.decode_seconds:
        return None
    traffic = bundle_traffic(Bundle(engine.path, manifest), engine.gears)
    depth = max(0.0, stats.context_used - stats.decode_steps / 2)
    in_process = DEVICE_RUNTIMES[manifest.target["device"]].in_process
    return Roofline(
        calls * traffic.per_step(depth),
        stats.decode_seconds,
        bandwidth,
        stats.spent.shares(stats.decode_seconds, in_process),
    )
