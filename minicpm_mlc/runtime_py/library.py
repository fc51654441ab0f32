"""The compiled library and its pools, through TVM's runtime library alone: no compiler, no `tvm`
package.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import BundleError, EngineError
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.bundle.facts import FACTS, Facts
from minicpm_mlc.bundle.kernel_cases import Case
from minicpm_mlc.bundle.manifest import CANDIDATES, LIKELIEST, REPAIR, Bundle, Manifest
from minicpm_mlc.bundle.params import load_draft_ids, load_params, mapped_files
from minicpm_mlc.bundle.state import Table, pool_shapes
from minicpm_mlc.bundle.supported import check_system
from minicpm_mlc.runtime_py.allocator import (
    KEPT_BYTES,
    KeptResults,
    called,
    device_calls,
    disturbed,
    empty_allocator,
    new_number,
)
from minicpm_mlc.runtime_py.device_pool import DevicePool
from minicpm_mlc.runtime_py.device_steps import TABLES, DeviceSteps, Found
from minicpm_mlc.runtime_py.draft_loop import DraftLoop, goes_on
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.kernel_check import Checked, check
from minicpm_mlc.runtime_py.load_failure import load_failure
from minicpm_mlc.runtime_py.machine import CORES
from minicpm_mlc.runtime_py.mapped_files import MappedFiles
from minicpm_mlc.runtime_py.memory import DeviceMemory, Memory, open_memory
from minicpm_mlc.runtime_py.out_of_memory import within_memory
from minicpm_mlc.runtime_py.outputs import Decoded
from minicpm_mlc.runtime_py.protocols import (
    COMMIT,
    DRAFT_CALLS,
    DRAFT_TREE,
    KernelAccess,
    Library,
)
from minicpm_mlc.runtime_py.spent import Lap, Spent
from minicpm_mlc.runtime_py.thread_pool import FEW_ROWS, forks_wait, pool_for
from minicpm_mlc.runtime_py.tvm_files import load_global, tvm_library

KEPT = {"cuda": 8 * KEPT_BYTES}  # where results of trees are kept for the next ones
RECENT = 0.05  # seconds for which files that are as they were need no other look; one takes 2 us


@dataclass(frozen=True)
class Pools:
    """Tensors in the order of a state table. A page costs memory once written."""

    tensors: Any
    bytes: int
    number: int = field(default_factory=new_number)


class LocalLibrary(Library):
    """A bundle's library in this process, its parameters mapped from the bundle's files."""

    @forks_wait()
    @within_memory
    def __init__(self, bundle: Bundle, threads: int) -> None:
        _check_threads(threads)
        load_runtime()
        library = bundle.file(bundle.manifest.library)
        self.memory: Memory = open_memory(bundle.manifest.target["device"])
        self.device_name = self.memory.name
        self.device_identity = self.memory.identity
        self.manifest = bundle.manifest
        self.vocab_size: int = bundle.manifest.model["vocab_size"]
        self._module, self._vm = _load(library)
        self.memory.start(self._vm)
        facts = _facts(library, self._vm)
        facts.check(bundle)
        self.threads = threads
        self._number = new_number()
        self.spent = Spent()
        self._kept = KeptResults(KEPT.get(bundle.manifest.target["device"], KEPT_BYTES))
        weakref.finalize(self, empty_allocator).atexit = False
        self._busy = threading.Lock()
        self._process = os.getpid()
        in_process = DEVICE_RUNTIMES[bundle.manifest.target["device"]].in_process
        self._pool = pool_for(library) if in_process else None
        self._files = MappedFiles([library, *mapped_files(bundle)])
        self._arrays = load_params(bundle)  # keeps the maps alive
        facts.check_tensors(bundle, self._arrays)
        self._params = tvm_ffi.convert([self.memory.tensor(array) for array in self._arrays])
        self.functions = _functions(self._vm, self.manifest)
        self._drafts = self._loop(bundle) if self.manifest.draft else None
        self._steps = self._on_device(self.memory)

    @property
    def local(self) -> KernelAccess:
        """Itself."""
        return self

    def new_pools(self, num_pages: int) -> Pools:
        """Pools of `num_pages` pages, and of one sequence where the model keeps state per sequence.
        The memory is reserved; the system commits it as pages are written.
        """
        return self._new_pools(self.manifest.state, num_pages)

    def new_draft_pools(self, num_pages: int) -> Pools:
        """The same for the draft head's layer."""
        assert self.manifest.draft
        return self._new_pools(self.manifest.draft["state"], num_pages)

    def waited(self, measure: bool) -> float:
        """Seconds of a run, since the last call, that a thread had no task in an operator that ran:
        a mean over the threads. `measure`: whether they are measured from now on.
        """
        return self._pool.waited(measure) / self.threads if self._pool else 0.0

    @within_memory
    def _new_pools(self, table: Table, num_pages: int) -> Pools:
        shapes = [(s, np.dtype(dtype)) for s, dtype in pool_shapes(table, num_pages, sequences=1)]
        tensors = tvm_ffi.convert([self.memory.zeros(*shape) for shape in shapes])
        return Pools(tensors, sum(prod(shape) * dtype.itemsize for shape, dtype in shapes))

    def pool_arrays(self, pools: Pools) -> list[np.ndarray | DevicePool]:
        """The pools' memory."""
        memory = self.memory
        if isinstance(memory, DeviceMemory):
            return [DevicePool(memory, tensor) for tensor in pools.tensors]
        return [memory.array(tensor) for tensor in pools.tensors]

    def kernel(self, name: str) -> Callable[..., None]:
        """One kernel of the library, to be called alone on tensors of `memory`. Raises BundleError
        where there is none.
        """
        try:
            function = self._module.get_function(name, query_imports=True)
        except AttributeError as error:
            raise BundleError(f"the library has no kernel {name}; {REPAIR}") from error

        def kernel(*tensors: Any) -> None:
            with self._alone():
                disturbed()
                function(*tensors)

        return kernel

    def check(self, case: Case, timed: bool = True) -> Checked:
        """Run a kernel case. Raises BundleError if the kernel doesn't run at all."""
        return check(self, case, timed)

    def instrument(self, report: Callable[..., int] | None) -> None:
        """Have report(function, name, before, result, *arguments) -> 0 called around every
        operator; None ends it.
        """
        self._vm["set_instrument"](tvm_ffi.convert(report) if report else None)
        if self._steps:
            self._steps.watched = report is not None

    @within_memory
    def run(
        self, kind: str, rows: Sequence[np.ndarray], pools: Pools, sparse: bool = False
    ) -> list[np.ndarray]:
        """One call of a compiled function, on this library's number of threads. Raises EngineError
        while another thread is inside, and where the bundle's files were written into since it
        was opened.
        """
        with self._alone(len(rows[0]) if rows else 1):
            self._files.check(0.0 if kind == "prefill" else RECENT)
            self._kept.make_room()
            if self._steps and kind in TABLES:
                logits, others = self._stepped(self._steps, kind, rows, pools, sparse)
                return others if logits is None else [np.asarray(logits), *others]
            if self._pool is None:
                called((self._number, kind, sparse, *(row.shape for row in rows)))
            lap = self.spent.mark()
            if kind == DRAFT_TREE:
                return [self._grown(rows, pools, lap)]
            arguments = self.memory.arguments(rows)
            function = self.functions[kind][sparse]
            if kind == COMMIT:
                self.memory.call(function, *arguments, pools.tensors)
                lap.returned()
                return []
            result = self.memory.call(function, *arguments, pools.tensors, self._params)
            lap.returned()
            tensors = result if isinstance(result, tvm_ffi.Array) else [result]
            arrays = [self.memory.array(tensor) for tensor in tensors]
            lap.read()
            self._kept.note(arrays)
            return arrays

    def _grown(self, rows: Sequence[np.ndarray], pools: Pools, lap: Lap) -> np.ndarray:
        """A draft tree on a CPU, where each level can be looked at."""
        assert self._drafts
        *rows, floor = rows
        arguments = self.memory.arguments(rows)
        tree = self.memory.array(arguments[-1])
        likely = partial(goes_on, tree, floor=floor.item())
        levels = self._drafts(arguments, pools.tensors, self._params, likely)
        lap.returned()
        return tree[: 1 + (levels - 1) * tree.shape[2]].copy()

    @property
    def steps_note(self) -> str | None:
        """How a GPU's decode steps are launched; None of a CPU's."""
        if self._steps is None:
            return None
        return self._steps.why_plain or "each step is one launch"

    @within_memory
    def _decoded(
        self, kind: str, rows: Sequence[np.ndarray], pools: Pools, sparse: bool
    ) -> Decoded:
        """A step on a GPU leaves its logits there."""
        if self._steps is None:
            return super()._decoded(kind, rows, pools, sparse)
        with self._alone():
            self._files.check(RECENT)
            self._kept.make_room()
            logits, others = self._stepped(self._steps, kind, rows, pools, sparse)
            assert logits is not None
            features = others.pop(0) if self.manifest.draft else None
            return Decoded(logits, features, tuple(others))

    def _stepped(
        self, steps: DeviceSteps, kind: str, rows: Sequence[np.ndarray], pools: Pools, sparse: bool
    ) -> Found:
        lap = self.spent.mark()
        logits, others = steps(kind, rows, pools, sparse, lap.returned)
        lap.read()
        self._kept.note(others if logits is None else [*others, logits])
        return logits, others

    def _loop(self, bundle: Bundle) -> DraftLoop:
        """How the bundle's head drafts."""
        self.draft_ids = load_draft_ids(bundle)
        return DraftLoop(self.memory, self.functions, self.draft_ids)

    def _on_device(self, memory: Memory) -> DeviceSteps | None:
        """What steps on a GPU; None for a CPU, and for a library without a function for it."""
        if not isinstance(memory, DeviceMemory):
            return None
        try:
            choosing = self._vm[LIKELIEST], self._vm[CANDIDATES]
        except AttributeError:
            return None
        return DeviceSteps(
            memory, self.functions, choosing, self._params, self.manifest, self._drafts
        )

    @contextmanager
    def _alone(self, rows: int = FEW_ROWS) -> Iterator[None]:
        """Compiled code may run, on `rows` rows."""
        if self._pool is None and os.getpid() != self._process:
            raise EngineError(
                f"{self.device_name} can't be used in a process that was forked from the one that "
                "opened it; start workers with spawn, or fork before the first engine is opened"
            )
        if not self._busy.acquire(blocking=False):
            raise EngineError(
                "the library is busy in another thread; wait for that call to end, or open a "
                "second Engine"
            )
        try:
            with self._pool.turn(self.threads, rows) if self._pool else device_calls:
                yield
        finally:
            self._busy.release()


def _functions(vm: Any, manifest: Manifest) -> dict[str, list[Callable[..., Any]]]:
    """The compiled functions by name, dense and, where there is one, sparse. Raises BundleError
    where the draft head's are not all there.
    """
    gears = ("", "_sparse") if manifest.dense_len is not None else ("",)
    kinds = ("prefill", "decode") if manifest.recurrent else ("prefill", "decode", "verify")
    functions = {kind: [vm[kind + gear] for gear in gears] for kind in kinds}
    if not manifest.recurrent:  # such a model checks no trees
        functions[COMMIT] = [vm[COMMIT]]
    try:
        return functions | {kind: [vm[kind]] for kind in DRAFT_CALLS if manifest.draft}
    except AttributeError as error:
        raise BundleError(f"the draft head's functions are not all there; {REPAIR}") from error


def _load(library: Path) -> tuple[Any, Any]:
    """The library's module, and its virtual machine. Raises BundleError for what is no library of
    ours.
    """
    try:
        module = tvm_ffi.load_module(library, keep_module_alive=False)
        return module, module["vm_load_executable"]()
    except Exception as error:
        raise BundleError(load_failure(library, error)) from error


def _facts(library: Path, vm: Any) -> Facts:
    try:
        return Facts.from_text(str(vm[FACTS]()))
    except Exception as error:
        raise BundleError(
            f"{library} doesn't say what it was compiled for ({error}); {REPAIR}"
        ) from error


@cache
def load_runtime() -> None:
    """Load libtvm_runtime.so, unless the whole of TVM is loaded already."""
    if "tvm" in sys.modules:
        return
    check_system()
    path = tvm_library("tvm_runtime")
    if path is None:
        raise BundleError(
            "TVM's runtime library is not installed; try: pip install minicpm-mlc-runtime"
        )
    load_global(path)


def _check_threads(threads: int) -> None:
    """Raises EngineError for more threads than this process has processors."""
    if threads > len(CORES):
        raise EngineError(
            f"threads is {threads}, but this process may use {len(CORES)}; give {len(CORES)} or "
            "fewer"
        )
