"""What a GPU's kernels may assume of the device: nothing yet that not every GPU has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.gpu.float16_bits import opened
from minicpm_mlc.ops.tir import Buffer


@dataclass(frozen=True)
class GpuTraits:
    """One family of GPUs."""

    folder: ClassVar[str] = "gpu"
    int8_dot: ClassVar[None] = None
    bf16_dot: ClassVar[bool] = False

    def opened(self, buffer: Buffer) -> Buffer:
        """An argument as bodies read it: float16 by its bits, which come as float32."""
        return opened(buffer)

    def sum_factor(self, scheme: Scheme) -> None:
        """None: GPUs multiply no int8."""

    def exact(self) -> GpuTraits:
        """Those of kernels that round no activations: these never do."""
        return self
