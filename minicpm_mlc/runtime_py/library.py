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
    """All layers' keys, then values, then segment means: tensors [num_pages, ...]. A page costs memory once written."""

    tensors: Any
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
        gears = ("", "_sparse") if bundle.manifest.dense_len is not None else ("",)
        self._prefill, self._decode = ([vm[name + gear] for gear in gears] for name in ("prefill", "decode"))

    def new_pools(self, num_pages: int) -> Pools:
        """Pools of `num_pages` pages. The memory is reserved; the system commits it as pages are written."""
        layout = self.manifest.kv_layout
        kinds = [(layout[kind], np.dtype("float32" if kind == "means" else self.manifest.kv_dtype))
                 for kind in ("k", "v", "means") if kind in layout]  # fmt: skip
        layers = range(self.manifest.model["num_layers"])
        arrays = [reserve((num_pages, *shape), dtype) for shape, dtype in kinds for _ in layers]
        return Pools(_tensors(arrays), sum(array.nbytes for array in arrays))

    def prefill(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
        pools: Pools,
        sparse: bool = False,
    ) -> np.ndarray:
        """One chunk of one sequence, all arrays int32 -> logits float32 [len(logit_rows), vocab] of those rows."""
        if len(token_ids) > self.manifest.prefill_chunk:
            raise ContextError(f"a chunk of {len(token_ids)} rows; the library holds {self.manifest.prefill_chunk}")
        rows = map(_tensor, (token_ids, positions, slots, page_table[None, :], logit_rows))
        logits = self._prefill[sparse](*rows, pools.tensors, self._params)
        return np.from_dlpack(logits)[:, : self.vocab_size]

    def decode(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_tables: np.ndarray,
        pools: Pools,
        sparse: bool = False,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """One row of each of b sequences, page_tables int32 [b, p] -> logits float32 [b, vocab].

        With `sparse` also the blocks that each layer read, int32 [b, kv_heads, budget], ascending, then -1.
        """
        if len(token_ids) > MAX_DECODE_SEQUENCES:
            raise ContextError(f"{len(token_ids)} sequences at once; the library holds {MAX_DECODE_SEQUENCES}")
        rows = map(_tensor, (token_ids, positions, slots, page_tables))
        out = self._decode[sparse](*rows, pools.tensors, self._params)
        logits, *selected = map(np.from_dlpack, out if sparse else [out])
        return logits[:, : self.vocab_size], selected


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
