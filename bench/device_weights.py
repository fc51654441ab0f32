"""Engines on a GPU whose weights and cache are random numbers that the GPU makes itself: files of
published size would take longer to write, to hash and to copy than everything that is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from minicpm_mlc import Engine
from minicpm_mlc.bundle.manifest import Bundle, manifest_sha256, read_bundle
from minicpm_mlc.bundle.params import TENSOR_CACHE
from minicpm_mlc.bundle.trust import allow
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.local_machine import LocalMachine
from minicpm_mlc.runtime_py.memory import DeviceMemory

# (least bits, which bits are random) of a word, by the dtype of a stored tensor: float16 scales
# from 0.004 to 0.016, float32 norms of 1
WORDS = {
    "uint8": (0, 0xFFFFFFFF),
    "int8": (0, 0xFFFFFFFF),
    "float16": (0x1C001C00, 0x07FF07FF),
    "uint16": (0x3C003C00, 0x007F007F),
    "float32": (0x3F800000, 0),
}
# the same of pools, from 0.25 to 0.5 of either sign
CACHED = {
    "int8": (0, 0xFFFFFFFF),
    "float16": (0x34003400, 0x83FF83FF),
    "uint16": (0x3E803E80, 0x807F807F),
    "float32": (0x3E800000, 0x807FFFFF),
}


@contextmanager
def random_engine(path: Path, context: int, library: Any) -> Iterator[Engine]:
    """An engine of a bundle without shards, its weights made on the device by `library`'s kernel
    fill.
    """
    _make_room(path)
    allow(manifest_sha256(path))
    with _filled(library):
        opened = Engine(path, context=context, remote=_Unread())
    with opened as engine:
        yield engine


def cache_filler(engine: Engine, library: Any) -> Callable[[int], None]:
    """What brings the cache to a depth without computing it: the pools hold random numbers."""
    access = engine.library.local
    assert access and isinstance(access.memory, DeviceMemory)
    for pool in engine.model.cache.pools.tensors:
        size = int(np.prod(pool.shape)) * np.dtype(str(pool.dtype)).itemsize
        _fill(library["fill"], access.memory, pool, size, CACHED[str(pool.dtype)])

    def fill(depth: int) -> None:
        sequence = engine.model.sequence
        count = depth - len(sequence)
        sequence.reserve(count)
        sequence.append([0] * count)

    return fill


def _make_room(path: Path) -> None:
    """The shards that are left out, as files that take no room on the disk."""
    for shard in json.loads((path / TENSOR_CACHE).read_bytes())["records"]:
        with open(path / shard["dataPath"], "ab") as file:
            file.truncate(shard["nbytes"])


class _Unread(LocalMachine):
    """This machine, which believes that a bundle's files hold what its manifest says."""

    def read_bundle(self, path: str | Path, device: str | None = None) -> Bundle:
        return read_bundle(path, device=device, verify="never")


@contextmanager
def _filled(library: Any) -> Iterator[None]:
    """Tensors that are made of arrays get random words instead, on the device."""
    copy, fill = DeviceMemory.tensor, library["fill"]

    def filled(memory: DeviceMemory, array: np.ndarray) -> Any:
        if array.nbytes % 4:
            return copy(memory, array)
        tensor = memory.zeros(array.shape, array.dtype)
        _fill(fill, memory, tensor, array.nbytes, WORDS[str(array.dtype)], copy)
        return tensor

    with patch.object(DeviceMemory, "tensor", filled):
        yield


def _fill(
    fill: Any,
    memory: DeviceMemory,
    tensor: Any,
    nbytes: int,
    words: tuple[int, int],
    copy: Callable[[DeviceMemory, np.ndarray], Any] = DeviceMemory.tensor,
) -> None:
    """Random words into a tensor."""
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    seen = view(tensor, tvm_ffi.Shape([nbytes // 4]), tvm_ffi.dtype("uint32"), 0)
    memory.call(fill, copy(memory, np.array(words, np.uint32)), seen)
