"""bfloat16, stored as its bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.ops.cpu.vector import LANES
from minicpm_mlc.ops.formats.bfloat16 import bfloat16_bits, bfloat16_numbers, rounded, widened
from minicpm_mlc.ops.formats.kv.base import KVFormat, Place
from minicpm_mlc.ops.gpu import float16_bits
from minicpm_mlc.ops.tir import Buffer, Expr, T


@dataclass(frozen=True, repr=False)
class BFloat16(KVFormat):
    """The upper half of a float32's bits, rounded."""

    name: str = "bf16"
    dtype: str = "bfloat16"
    storage: str = "uint16"

    def multiplied_as_bfloat16(self, bf16_dot: bool) -> bool:
        return bf16_dot

    def write(
        self,
        k_pages: np.ndarray,
        v_pages: np.ndarray,
        page: int | slice,
        slot: int,
        k: np.ndarray,
        v: np.ndarray,
    ) -> None:
        super().write(k_pages, v_pages, page, slot, bfloat16_bits(k), bfloat16_bits(v))

    def read(self, k_pages: np.ndarray, v_pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().read(bfloat16_numbers(k_pages), bfloat16_numbers(v_pages))

    def cpu_load(self, pool: Buffer, *index: Expr) -> Expr:
        return widened(pool[(*index[:-1], T.ramp(index[-1], 1, LANES))])

    def cpu_stored(
        self, vectors: list[Expr], k_pages: Buffer, which: int, place: Place
    ) -> list[Expr]:
        return [rounded(x) for x in vectors]

    def gpu_load(self, pool: Buffer, index: list[Expr]) -> Expr:
        return float16_bits.from_bfloat16(pool[tuple(index)])

    def gpu_store(self, pool: Buffer, x: Expr, index: list[Expr]) -> None:
        T.buffer_store(pool, float16_bits.bfloat16_bits(x), index)
