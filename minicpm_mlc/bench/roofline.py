"""What a machine has to give: how fast it reads memory, which bounds a decode step, and how fast it
multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Measured with as many threads as the run: bytes/s of memory, operations/s of float32 and int8
    multiply-adds.

    `int8` is None where the processor has no int8 dot products.
    """

    threads: int
    bandwidth: float
    float32: float
    int8: float | None

    def text(self) -> str:
        """One line, without an end."""
        rates = [
            f"memory reads {self.bandwidth / 1e9:.1f} GB/s",
            f"{self.float32 / 1e9:.0f} GFLOP/s float32",
        ]
        rates += [f"{self.int8 / 1e9:.0f} GOP/s int8"] if self.int8 else []
        return f"{self.threads} thread{'s' * (self.threads > 1)}: {', '.join(rates)}"
