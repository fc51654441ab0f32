"""Weight shards in MLC's layout: tensor-cache.json beside params_shard_N.bin, every tensor on a
64-byte boundary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.params import numpy_dtype
from minicpm_mlc.compile.writer import BundleFile, BundleWriter

ALIGNMENT = 64  # one cache line and the widest vector: mapped weights are used in place
SHARD_CAP = 32 << 20
SHARD = "params_shard_"  # how the names of shards begin


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk: `dtype` is the name written in tensor-cache.json."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: the file params_shard_`shard`.bin, from byte `offset`."""

    tensor: StoredTensor
    shard: int
    offset: int


def place(tensors: Iterable[StoredTensor], cap: int = SHARD_CAP) -> list[Place]:
    """Fill shards in order up to `cap` bytes; a tensor larger than that gets a shard of its own."""
    places: list[Place] = []
    shard, end = 0, 0
    for tensor in tensors:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if end and offset + tensor.nbytes > cap:
            shard, offset = shard + 1, 0
        places.append(Place(tensor, shard, offset))
        end = offset + tensor.nbytes
    return places


class ShardWriter:
    """Writes tensors in the order they were placed, a chunk at a time."""

    def __init__(
        self,
        bundle: BundleWriter,
        tensors: Iterable[StoredTensor],
        parameters: int,
        cap: int = SHARD_CAP,
    ) -> None:
        """`parameters` is the model's number of weights, for tensor-cache.json's statistics."""
        self._bundle = bundle
        self._places = place(tensors, cap)
        self._parameters = parameters
        self._waiting = iter(self._places)
        self._files: list[BundleFile] = []

    def add(self, name: str, chunks: Iterable[np.ndarray]) -> None:
        """Write the next tensor, which must be `name`, from chunks that hold its elements in
        order.
        """
        spot = next(self._waiting, None)
        if spot is None or spot.tensor.name != name:
            raise CompileError(
                f"tensor {name} was written out of order; expected "
                f"{spot.tensor.name if spot else 'no more tensors'}"
            )
        file = self._file(spot.shard)
        file.write(bytes(spot.offset - file.size))
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
        if file.size != spot.offset + spot.tensor.nbytes:
            raise CompileError(
                f"tensor {name} took {file.size - spot.offset} bytes; expected {spot.tensor.nbytes}"
            )

    def close(self) -> None:
        """Finish the last shard and write tensor-cache.json."""
        if (spot := next(self._waiting, None)) is not None:
            raise CompileError(f"tensor {spot.tensor.name} was never written")
        if self._files:
            self._files[-1].close()
        self._bundle.add_json("tensor-cache.json", self._tensor_cache())

    def _file(self, shard: int) -> BundleFile:
        if shard == len(self._files):
            if self._files:
                self._files[-1].close()
            self._files.append(self._bundle.create(f"{SHARD}{shard}.bin", md5=True))
        return self._files[shard]

    def _tensor_cache(self) -> dict[str, Any]:
        size = sum(spot.tensor.nbytes for spot in self._places)
        statistics = {
            "ParamSize": len(self._places),
            "ParamBytes": float(size),
            "BitsPerParam": size * 8 / self._parameters if self._parameters else 0.0,
        }
        return {"metadata": statistics, "records": list(self._shard_records())}

    def _shard_records(self) -> Iterator[dict[str, Any]]:
        for shard, file in enumerate(self._files):
            yield {
                "dataPath": file.name,
                "format": "raw-shard",
                "nbytes": file.size,
                "md5sum": file.md5,
                "records": [_record(spot) for spot in self._places if spot.shard == shard],
            }


def _record(spot: Place) -> dict[str, Any]:
    tensor = spot.tensor
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "format": "raw",
        "nbytes": tensor.nbytes,
        "byteOffset": spot.offset,
    }
