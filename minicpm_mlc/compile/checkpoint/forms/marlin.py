"""Marlin: GPTQ's symmetric 4-bit integers in the order in which its GPU kernel reads them.

Of a linear P with K inputs, N outputs and G groups:

    P.qweight int32 [K / 16, 2 * N]    tiles of 16 inputs and 16 outputs, 4 tiles permuted
    P.scales  f16   [G, N]             runs of 64 outputs permuted; of 32 where G is 1
    w[n, k] = scales[k * G // K, n] * (value - 8)

CPM.cu writes this with q, k and v, and gate and up, stacked along the outputs. AutoGPTQ's files
have the same layout and call the tensors B and s.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.forms import Reader, Shapes, Stated
from minicpm_mlc.compile.checkpoint.packed import Linear, QuantisedLinear, unpack
from minicpm_mlc.compile.checkpoint.tensor import Integers, Tensor, contiguous_groups

METHODS = ("marlin",)
TILE = 16  # inputs, and outputs
RUN = 64  # outputs that are permuted together
NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # the place of each of eight numbers in a word
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def reader(stated: Stated, found: Found) -> Reader:
    """Of CPM.cu's files."""
    return Reader(partial(_tensor, found, "qweight", "scales"))


def marlin_gptq(stated: Stated, found: Found) -> Reader:
    """Of AutoGPTQ's and GPTQModel's files whose format is marlin."""
    stated.require("bits", 4)
    stated.require("sym", True)
    ends = ("B", "s") if any(name.endswith(".B") for name in found) else ("qweight", "scales")
    return Reader(partial(_tensor, found, *ends))


def _tensor(found: Found, weight: str, scales: str, name: str, shapes: Shapes) -> Tensor | None:
    path, _, own = name.removesuffix(".weight").rpartition(".")
    places = {own: (own,)} | {fused: parts for fused, parts in FUSED.items() if own in parts}
    for stored, parts in places.items():
        linear = Linear(f"{path}.{stored}", found)
        if linear.has(weight):
            rows = [shapes[f"{path}.{part}.weight"][0] for part in parts]
            first = sum(rows[: parts.index(own)])
            return MarlinTensor(linear, (weight, scales), shapes[name], first, sum(rows))
    return None


class MarlinTensor(QuantisedLinear):
    """Rows of a linear of `outputs` rows, from `first` on."""

    def __init__(
        self,
        linear: Linear,
        ends: tuple[str, str],
        shape: tuple[int, ...],
        first: int,
        outputs: int,
    ) -> None:
        weight, scales = ends
        k = shape[1]
        if outputs % RUN or k % TILE:
            wrong = f"stands for {outputs} outputs of {k} inputs, expected multiples of {RUN} and"
            raise linear.error(weight, f"{wrong} {TILE}")
        self._qweight = linear.array(weight, ("I32",), (k // TILE, 2 * outputs))
        count = linear.rows_of(scales)
        self._scales = linear.numbers(scales, (max(1, min(count, k)), outputs))
        self._first, self._groups = first, contiguous_groups(k, count)
        linear.ignore("workspace")
        super().__init__(linear, shape, "Marlin (4 bits)")

    @property
    def nbytes(self) -> int:
        return super().nbytes * self.shape[0] // self._scales.stored.shape[1]

    def integers(self, start: int, stop: int) -> Integers:
        """Whole runs are undone, and the rows asked for cut out of them."""
        start, stop = start + self._first, stop + self._first
        low, high = start // RUN * RUN, -(-stop // RUN) * RUN
        mine = slice(start - low, stop - low)
        values = _undone(self._qweight[:, 2 * low : 2 * high])[mine]
        scale = _in_order(self._scales[:, low:high], one_group=len(self._scales.stored) == 1)
        return Integers(values, scale.T[mine], self._groups, 8)


def _undone(words: np.ndarray) -> np.ndarray:
    """Words [K / 16, 2 n] -> values [n, K]."""
    tiles, outputs = words.shape[0], words.shape[1] // 2
    stored = unpack(words, 4, outputs * TILE).reshape(-1, TILE * RUN)
    plain = np.empty_like(stored)
    plain[:, weight_order()] = stored
    plain = plain.reshape(tiles, outputs // TILE, TILE, TILE)  # tile of inputs, of outputs, in, out
    return plain.transpose(1, 3, 0, 2).reshape(outputs, tiles * TILE)


def _in_order(scales: np.ndarray, *, one_group: bool) -> np.ndarray:
    """Scales [groups, n] by their outputs."""
    order = scale_order(one_group)
    stored = scales.reshape(len(scales), -1, len(order))
    plain = np.empty_like(stored)
    plain[..., order] = stored
    return plain.reshape(scales.shape)


@cache
def weight_order() -> np.ndarray:
    """The number that each of 1024 stored ones is: those that a thread of the tensor core holds."""
    order = []
    for thread in range(32):
        column, row = thread // 4, 2 * (thread % 4)
        pairs = [(row + down, column + right) for right in (0, 8) for down in (0, 1, 8, 9)]
        order += [16 * r + c + 256 * tile for tile in range(4) for r, c in pairs]
    return np.array(order).reshape(-1, 8)[:, NIBBLES].reshape(-1)


@cache
def scale_order(one_group: bool) -> np.ndarray:
    """The output of each stored scale: of 64, or of 32 where one group covers all inputs."""
    if one_group:
        return np.array([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])
    return np.arange(RUN).reshape(8, 8).T.reshape(-1)
