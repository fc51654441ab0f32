"""What a CPU's kernels may assume of the processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from minicpm_mlc.ops.cpu.int8_dot import DOTS
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.tir import Buffer

MOST_ROWS = 6  # of 16 lanes that AVX2 and NEON hold beside a scalar and a vector


@dataclass(frozen=True)
class CpuTraits:
    """One family of processors.

    `accumulators`: vectors of 16 float32 lanes that stay in registers beside their operands.
    `int8_dot`: the feature whose dot products linears with int8 activations use, if there is one.
    `bf16_dot`: whether attention multiplies a bfloat16 cache as it is, which rounds queries and
    softmax weights to bfloat16. `streams`: weight blocks that a linear's task reads at once;
    `ahead`: bytes that one stream is prefetched ahead.
    """

    folder: ClassVar[str] = "cpu"
    f16_tiles: ClassVar[bool] = False
    launches: ClassVar[bool] = False
    # what `minicpm-mlc tune` tries, by operator: fields and their values
    choices: ClassVar[dict[str, dict[str, tuple[int, ...]]]] = {
        "linear_int8": {"streams": (1, 2), "ahead": (4096, 8192, 16384)}
    }
    accumulators: int
    int8_dot: str | None = None
    bf16_dot: bool = False
    streams: int = 2
    ahead: int = 8192

    def opened(self, buffer: Buffer) -> Buffer:
        """An argument as bodies read it: as it is."""
        return buffer

    def sum_factor(self, scheme: Scheme) -> int | None:
        """What quantize_rows multiplies sums by beside weights of this scheme; None where the
        processor multiplies no int8.
        """
        return None if self.int8_dot is None else DOTS[self.int8_dot].factor(scheme)

    def laid_out(self, kv: KVFormat) -> KVFormat:
        """How keys and values of a format lie for attention's products."""
        dot = self.int8_dot
        return kv.beside(None if dot is None else DOTS[dot].query_levels)

    def tuned(self, parameters: Mapping[str, int]) -> CpuTraits:
        """With these values of what `choices` names."""
        return replace(self, **parameters)

    @property
    def normalises(self) -> bool:
        """Whether a product normalises its rows itself: an operator of its own costs nothing."""
        return False

    def exact(self) -> CpuTraits:
        """Those of kernels that round no activations where they have the choice."""
        return replace(self, int8_dot=None, bf16_dot=False)

    @property
    def peak_vectors(self) -> int:
        """Independent multiply-adds of 16 lanes that hide their latency and stay in registers: 10
        of 32 with AVX-512, 10 of 16 with AVX2, 20 of 32 with NEON.
        """
        return self.accumulators * 5 // 4

    @property
    def linear_rows(self) -> int:
        """Rows of 16 float32 sums that stay in registers beside what makes them, and hide its
        latency.
        """
        return 12 if self.accumulators >= 8 else MOST_ROWS

    def attention_vectors(self, rows: int) -> int:
        """Accumulators of attention's tiles over so many rows: two vectors for each scalar that is
        loaded, where there are registers; else as many rows as fit, of few rows 4, which leave none
        of a tile idle.
        """
        if self.accumulators >= 8:
            return 16
        return MOST_ROWS if rows > 2 * MOST_ROWS * self.accumulators else self.accumulators
