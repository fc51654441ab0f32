"""The compiled library and its pools, through TVM's runtime library alone: no compiler, no `tvm`
package.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import BundleError, ContextError, EngineError
from minicpm_mlc.bundle.kernel_cases import Case
from minicpm_mlc.bundle.manifest import MAX_DECODE_SEQUENCES, Bundle
from minicpm_mlc.bundle.params import load_draft_ids, load_params
from minicpm_mlc.bundle.state import Table, pool_shapes
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.kernel_check import Checked, check
from minicpm_mlc.runtime_py.machine import CORES
from minicpm_mlc.runtime_py.memory import open_memory
from minicpm_mlc.runtime_py.outputs import Outputs

SHARE_ALL_CORES = -3  # TVM's affinity mode that lets the system move threads between the cores


@dataclass(frozen=True)
class Pools:
    """Tensors in the order of a state table. A page costs memory once written."""

    tensors: Any
    bytes: int


class Library:
    """The functions of a bundle's library, its parameters mapped from the bundle's files."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        load_runtime()
        self.memory = open_memory(bundle.manifest.target["device"])
        self.manifest = bundle.manifest
        self.vocab_size: int = bundle.manifest.model["vocab_size"]
        try:
            module = tvm_ffi.load_module(
                bundle.path / bundle.manifest.library, keep_module_alive=False
            )
        except Exception as error:
            library = bundle.path / bundle.manifest.library
            raise BundleError(
                f"{library} does not load: {error}; compile the bundle again"
            ) from error
        vm = module["vm_load_executable"]()
        self.memory.start(vm)
        self.threads = threads
        use_threads(threads)
        self._module, self._vm = module, vm
        self._arrays = load_params(bundle)  # keeps the maps alive
        self._params = tvm_ffi.convert([self.memory.tensor(array) for array in self._arrays])
        gears = ("", "_sparse") if bundle.manifest.dense_len is not None else ("",)
        self._prefill, self._decode = (
            [vm[kind + gear] for gear in gears] for kind in ("prefill", "decode")
        )
        if not bundle.manifest.recurrent:  # such a model verifies no trees
            self._verify, self._commit = [vm["verify" + gear] for gear in gears], vm["commit"]
        if bundle.manifest.draft:
            self._draft_extend, self._draft_step = vm["draft_extend"], vm["draft_step"]
            self.draft_ids = load_draft_ids(bundle)

    def new_pools(self, num_pages: int) -> Pools:
        """Pools of `num_pages` pages, and of one sequence where the model keeps state per sequence.
        The memory is reserved; the system commits it as pages are written.
        """
        return self._new_pools(self.manifest.state, num_pages)

    def new_draft_pools(self, num_pages: int) -> Pools:
        """The same for the draft head's layer."""
        assert self.manifest.draft
        return self._new_pools(self.manifest.draft["state"], num_pages)

    def _new_pools(self, table: Table, num_pages: int) -> Pools:
        shapes = [(s, np.dtype(dtype)) for s, dtype in pool_shapes(table, num_pages, sequences=1)]
        tensors = tvm_ffi.convert([self.memory.zeros(*shape) for shape in shapes])
        return Pools(tensors, sum(prod(shape) * dtype.itemsize for shape, dtype in shapes))

    def kernel(self, name: str) -> Any:
        """One kernel of the library, to be called alone on tensors of `memory`."""
        return self._module.get_function(name, query_imports=True)

    def check(self, case: Case, timed: bool = True) -> Checked:
        """Run a kernel case. Raises BundleError if the kernel doesn't run at all."""
        return check(self, case, timed)

    def instrument(self, report: Any) -> None:
        """Have report(function, name, before, result, *arguments) -> 0 called around every
        operator; None ends it.
        """
        self._vm["set_instrument"](tvm_ffi.convert(report) if report else None)

    def prefill(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
        pools: Pools,
        sparse: bool = False,
    ) -> Outputs:
        """One chunk of one sequence, all arrays int32 -> logits of the rows that `logit_rows`
        names, features of all.
        """
        if len(token_ids) > self.manifest.prefill_chunk:
            raise ContextError(
                f"a chunk of {len(token_ids)} rows; the library holds {self.manifest.prefill_chunk}"
            )
        rows = (token_ids, positions, slots, page_table[None, :], logit_rows)
        return self._outputs(self._run(self._prefill[sparse], rows, pools.tensors, self._params))

    def decode(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_tables: np.ndarray,
        pools: Pools,
        sparse: bool = False,
    ) -> Outputs:
        """One row of each of b sequences, page_tables int32 [b, p]."""
        if len(token_ids) > MAX_DECODE_SEQUENCES:
            raise ContextError(
                f"{len(token_ids)} sequences at once; the library holds {MAX_DECODE_SEQUENCES}"
            )
        rows = (token_ids, positions, slots, page_tables)
        return self._outputs(self._run(self._decode[sparse], rows, pools.tensors, self._params))

    def verify(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        base: np.ndarray,
        page_table: np.ndarray,
        ancestors: np.ndarray,
        pools: Pools,
        sparse: bool = False,
    ) -> Outputs:
        """Nodes of a token tree whose slots begin at base int32 [1].

        `slots` are contiguous. A node sees the slots before the base, and of the tree those whose
        bits (slot - base) its mask, int32 [n, 2], low word first, has.
        """
        rows = (token_ids, positions, slots, base, page_table[None, :], ancestors)
        return self._outputs(self._run(self._verify[sparse], rows, pools.tensors, self._params))

    def commit(
        self, sources: np.ndarray, slots: np.ndarray, page_table: np.ndarray, pools: Pools
    ) -> None:
        """Moves the cached rows at `sources`, ascending, to `slots`, contiguous and none after its
        source.
        """
        self._run(self._commit, (sources, slots, page_table[None, :]), pools.tensors)

    def draft_extend(
        self,
        token_ids: np.ndarray,
        features: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
        pools: Pools,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The draft head over rows of one sequence, each the base's features float32 [n, F] and the
        token after it.

        Returns the likeliest ids of the head's vocabulary int32 [m, k], the likeliest first, their
        log-probabilities float32 [m, k], and hidden states float32 [m, H], of the rows named.
        """
        rows = (token_ids, features, positions, slots, page_table[None, :], logit_rows)
        ids, values, hidden = map(
            self.memory.array, self._run(self._draft_extend, rows, pools.tensors, self._params)
        )
        return ids, values, hidden

    def draft_step(
        self,
        token_ids: np.ndarray,
        hidden: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        base: np.ndarray,
        page_table: np.ndarray,
        ancestors: np.ndarray,
        pools: Pools,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The draft head over nodes of a draft tree that begins at slot base; `hidden` float32 [n,
        H] are its own.

        A node sees what `verify` lets it see. Returns what draft_extend does, of all nodes.
        """
        rows = (token_ids, hidden, positions, slots, base, page_table[None, :], ancestors)
        ids, values, hidden = map(
            self.memory.array, self._run(self._draft_step, rows, pools.tensors, self._params)
        )
        return ids, values, hidden

    def _run(self, function: Callable[..., Any], arrays: tuple[np.ndarray, ...], *rest: Any) -> Any:
        """One call of a compiled function, on this library's number of threads."""
        use_threads(self.threads)
        return self.memory.call(function, *self.memory.arguments(arrays), *rest)

    def _outputs(self, result: Any) -> Outputs:
        """Of a function that returns logits, then features if there is a draft head, then blocks if
        it is sparse.
        """
        logits, *rest = map(
            self.memory.array, result if isinstance(result, tvm_ffi.Array) else [result]
        )
        features = rest.pop(0) if self.manifest.draft else None
        return Outputs(logits[:, : self.vocab_size], features, tuple(rest))


@cache
def load_runtime() -> None:
    """Load libtvm_runtime.so, unless the whole of TVM is loaded already."""
    if "tvm" in sys.modules:
        return
    spec = importlib.util.find_spec("tvm")
    folders = list(spec.submodule_search_locations or []) if spec else []
    libraries = [path for folder in folders for path in Path(folder).glob("lib/libtvm_runtime.*")]
    if not libraries:
        raise BundleError(
            "TVM's runtime library is not installed; try: pip install apache-tvm==0.27.0.post1"
        )
    ctypes.CDLL(str(libraries[0]), mode=ctypes.RTLD_GLOBAL)


_pool = (
    threading.local()
)  # TVM keeps a pool of threads for each thread that calls it: `threads`, how large this one's is


def use_threads(threads: int) -> None:
    """Have calls from this thread use `threads` threads, which may run on any core that this
    process may.

    Raises EngineError for more threads than this process has processors.
    """
    if getattr(_pool, "threads", None) == threads:
        return
    if threads > len(CORES):
        raise EngineError(
            f"threads is {threads}, but this process may use {len(CORES)}; give {len(CORES)} or "
            "fewer"
        )
    load_runtime()
    tvm_ffi.get_global_func("runtime.config_threadpool")(
        SHARE_ALL_CORES, threads, list(map(str, CORES))
    )
    _pool.threads = threads
