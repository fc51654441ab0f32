"""What a GPU's kernels may assume of the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.gpu.float16_bits import opened
from minicpm_mlc.ops.int8_sums import factor_of
from minicpm_mlc.ops.tir import Buffer


@dataclass(frozen=True)
class GpuTraits:
    """One family of GPUs; without arguments nothing is assumed that not every GPU has.

    `int8_dot`: the instruction that multiplies int8, where there is one. `f16_tiles`: whether
    attention multiplies a float16 cache on tensor cores, which rounds queries and softmax weights
    to float16. `f32_tiles`: whether block scores multiply float32 on them, in parts, which rounds
    nothing. `int8_tiles`: whether linears multiply int8 on them. `simd_tiles`:
    whether the 32 threads of a simdgroup hold matrices of float32 together, as on Apple's.
    `quads`: whether 4, and 32, neighbouring threads exchange numbers without shared memory.
    `normalises`: whether every workgroup of a product normalises its row itself, which takes it
    less time than a launch. `meets`: whether a workgroup finds out that it is the last, and sees
    what the others wrote. `vector_elements`: whether a buffer's elements may be vectors.
    `split_pages`: the least pages worth a workgroup of attention; `stream_threads`: of a workgroup
    of a linear of few rows.
    """

    folder: ClassVar[str] = "gpu"
    # what `minicpm-mlc tune` tries, by operator: fields and their values
    choices: ClassVar[dict[str, dict[str, tuple[int, ...]]]] = {
        "attend_decode": {"split_pages": (2, 4, 8, 16)},
        "linear_int8": {"stream_threads": (128, 256, 512)},
    }
    bf16_dot: ClassVar[bool] = False
    launches: ClassVar[bool] = True  # every kernel is one, at a cost: operators are merged
    int8_dot: str | None = None
    f16_tiles: bool = False
    f32_tiles: bool = False
    int8_tiles: bool = False
    simd_tiles: bool = False
    quads: bool = False
    normalises: bool = False
    meets: bool = False
    vector_elements: bool = True
    split_pages: int = 8
    stream_threads: int = 256

    def opened(self, buffer: Buffer) -> Buffer:
        """An argument as bodies read it: float16 by its bits, which come as float32."""
        return opened(buffer)

    def sum_factor(self, scheme: Scheme) -> int | None:
        """What quantize_rows multiplies sums by beside weights of this scheme; None where the GPU
        multiplies no int8.
        """
        return None if self.int8_dot is None else factor_of(scheme, scheme.values.zero)

    def laid_out(self, kv: KVFormat) -> KVFormat:
        """How keys and values of a format lie: as they are."""
        return kv

    def tuned(self, parameters: Mapping[str, int]) -> GpuTraits:
        """With these values of what `choices` names."""
        return replace(self, **parameters)

    def exact(self) -> GpuTraits:
        """Those of kernels that round no activations where they have the choice."""
        return replace(self, f16_tiles=False)
