"""The compiled library and its pools, through TVM's runtime library alone: no compiler, no `tvm` package."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, ContextError
from ..manifest import MAX_DECODE_SEQUENCES, Bundle
from ..params import load_params


def _import_without_torch(name: str) -> Any:
    """tvm_ffi imports torch wherever it is installed, which takes seconds; only NumPy arrays are handed to it here."""
    if "torch" in sys.modules:
        return importlib.import_module(name)
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["torch"]


tvm_ffi = _import_without_torch("tvm_ffi")

ALIGNMENT = 64  # bytes; compiled code loads whole vectors
SHARE_ALL_CORES = -3  # TVM's affinity mode that lets the system move threads between the cores
POOLED_ALLOCATOR = 2


@dataclass(frozen=True)
class Pools:
    """Keys and values of all layers: one tensor [num_pages, ...] each. A page costs memory once it is written."""

    k_pages: Any
    v_pages: Any
    bytes: int


class Library:
    """The functions of a bundle's library, its parameters mapped from the bundle's files."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        load_runtime()
        self.manifest = bundle.manifest
        self.vocab_size: int = bundle.manifest.model["vocab_size"]
        try:
            module = tvm_ffi.load_module(bundle.path / bundle.manifest.library, keep_module_alive=False)
        except Exception as error:
            library = bundle.path / bundle.manifest.library
            raise BundleError(f"{library} does not load: {error}; compile the bundle again") from error
        vm = module["vm_load_executable"]()
        vm["vm_initialization"](tvm_ffi.DLDeviceType.kDLCPU, 0, POOLED_ALLOCATOR)
        use_threads(threads)
        self._module, self._vm = module, vm
        self._arrays = load_params(bundle)  # keeps the maps alive
        self._params = _tensors(self._arrays)
        self._prefill, self._decode = vm["prefill"], vm["decode"]

    def new_pools(self, num_pages: int) -> Pools:
        """Pools of `num_pages` pages. The memory is reserved; the system commits it as pages are written."""
        layers, dtype = self.manifest.model["num_layers"], np.dtype(self.manifest.kv_dtype)
        shapes = [(num_pages, *self.manifest.kv_layout[kind]) for kind in "kv"]
        keys, values = ([reserve(shape, dtype) for _ in range(layers)] for shape in shapes)
        return Pools(_tensors(keys), _tensors(values), sum(array.nbytes for array in keys + values))

    def prefill(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
        pools: Pools,
    ) -> np.ndarray:
        """One chunk of one sequence, all arrays int32 -> logits float32 [len(logit_rows), vocab] of those rows."""
        if len(token_ids) > self.manifest.prefill_chunk:
            raise ContextError(f"a chunk of {len(token_ids)} rows; the library holds {self.manifest.prefill_chunk}")
        rows = map(_tensor, (token_ids, positions, slots, page_table[None, :], logit_rows))
        logits = self._prefill(*rows, pools.k_pages, pools.v_pages, self._params)
        return np.from_dlpack(logits)[:, : self.vocab_size]

    def decode(
        self, token_ids: np.ndarray, positions: np.ndarray, slots: np.ndarray, page_tables: np.ndarray, pools: Pools
    ) -> np.ndarray:
        """One row of each of b sequences, page_tables int32 [b, p] -> logits float32 [b, vocab]."""
        if len(token_ids) > MAX_DECODE_SEQUENCES:
            raise ContextError(f"{len(token_ids)} sequences at once; the library holds {MAX_DECODE_SEQUENCES}")
        rows = map(_tensor, (token_ids, positions, slots, page_tables))
        logits = self._decode(*rows, pools.k_pages, pools.v_pages, self._params)
        return np.from_dlpack(logits)[:, : self.vocab_size]


@cache
def load_runtime() -> None:
    """Load libtvm_runtime.so, unless the whole of TVM is loaded already."""
    if "tvm" in sys.modules:
        return
    spec = importlib.util.find_spec("tvm")
    folders = list(spec.submodule_search_locations or []) if spec else []
    libraries = [path for folder in folders for path in Path(folder).glob("lib/libtvm_runtime.*")]
    if not libraries:
        raise BundleError("TVM's runtime library is not installed; try: pip install apache-tvm==0.27.0.post1")
    ctypes.CDLL(str(libraries[0]), mode=ctypes.RTLD_GLOBAL)


def use_threads(threads: int) -> None:
    """Size TVM's thread pool, which is one per process, and let its threads run on any core this process may use."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    tvm_ffi.get_global_func("runtime.config_threadpool")(SHARE_ALL_CORES, threads, [str(core) for core in cores])


def reserve(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An aligned zeroed array whose memory is not touched yet."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _tensors(arrays: list[np.ndarray]) -> Any:
    return tvm_ffi.convert([tvm_ffi.from_dlpack(array) for array in arrays])


def _tensor(array: np.ndarray) -> Any:
    """An int32 row argument as a tensor, moved only if it isn't aligned."""
    if array.ctypes.data % ALIGNMENT:
        aligned = reserve(array.shape, array.dtype)
        aligned[...] = array
        array = aligned
    return tvm_ffi.from_dlpack(array)
