"""A step on CUDA as one launch: its copies and kernels are recorded once as a graph, over arguments
and results at fixed places.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import DeviceError
from minicpm_mlc.runtime_py.ffi import tvm_ffi

LIBRARY = "libcudart.so.13"  # loaded with the CUDA runtime
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
RELAXED = 2  # cudaStreamCaptureMode: a malloc is no error; it isn't recorded
ALIGNED = 64  # bytes


class CudaRuntime:
    """The functions of CUDA's runtime library that a graph takes. Raises DeviceError where one
    fails, OSError where the library can't be had.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def __call__(self, name: str, *arguments: Any) -> None:
        """Calls a function."""
        if status := getattr(self._library, name)(*arguments):
            said = self._library.cudaGetErrorString(status).decode()
            self._library.cudaGetLastError()  # the next call begins anew
            raise DeviceError(f"{name}: {said}")

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function gives through its first argument, a handle or a pointer."""
        handle = ctypes.c_void_p()
        self(name, ctypes.byref(handle), *arguments)
        return handle

    def failed(self) -> int:
        """The last call of this thread that failed since this was asked: its error, 0 for none."""
        return self._library.cudaGetLastError()

    def attempted(self, name: str, *arguments: Any) -> None:
        """Calls a function whose failure doesn't matter any more."""
        getattr(self._library, name)(*arguments)

    def copy(self, to: int, source: int, nbytes: int, kind: int, stream: ctypes.c_void_p) -> None:
        """Puts a copy into a stream."""
        place, origin = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self("cudaMemcpyAsync", place, origin, ctypes.c_size_t(nbytes), kind, stream)

    def pinned(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """Arrays of so many bytes in host memory that the device copies from and to by itself."""
        starts = np.cumsum([0, *(-(-size // ALIGNED) * ALIGNED for size in sizes)])
        address = self.made("cudaMallocHost", ctypes.c_size_t(max(ALIGNED, int(starts[-1]))))
        assert address.value
        block = (ctypes.c_uint8 * int(starts[-1])).from_address(address.value)
        weakref.finalize(block, self.attempted, "cudaFreeHost", address).atexit = False
        whole = np.ctypeslib.as_array(block)
        return [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]


@cache
def cuda_runtime() -> CudaRuntime:
    """The one of this process."""
    return CudaRuntime()


def memory_ran_out() -> bool:
    """Whether this thread was refused memory since this was asked, by whomever."""
    try:
        return cuda_runtime().failed() == OUT_OF_MEMORY
    except OSError:  # where CUDA's library can't be had, nothing is recorded
        return False


class GraphStream:
    """The stream that graphs run on. It waits for the usual stream's work, and that for its.
    `waits`: how often all that was put into it was waited for.
    """

    def __init__(self) -> None:
        self._runtime = cuda_runtime()
        self.handle = self._runtime.made("cudaStreamCreateWithFlags", 0)
        self.waits = 0

    def wait(self) -> None:
        """Until everything is done that was put into it."""
        self._runtime("cudaStreamSynchronize", self.handle)
        self.waits += 1


@cache
def graph_stream() -> GraphStream:
    """The one of this process."""
    return GraphStream()


@dataclass(frozen=True)
class Results:
    """Tensors that a step gives: those that are copied to the host every time, and logits float32
    [rows, padded vocab] that are copied when somebody asks.
    """

    copied: list[Any] = field(default_factory=list)
    logits: Any = None


class StepGraph:
    """A recorded step: `launch` gives it other arguments of the same shapes."""

    def __init__(self, arguments: Sequence[Any], step: Callable[..., Results]) -> None:
        """Records `step(*arguments)`, which ran before with these shapes, so that the memory it
        takes is at hand. `arguments`: tensors on the device, which each launch writes anew.

        Raises DeviceError where CUDA can't, OSError where its library is missing.
        """
        self._runtime, self._stream = cuda_runtime(), graph_stream()
        self._launched = -1  # how often the stream had been waited for then
        self.drawing: StepGraph | None = None  # what finds candidates among its logits
        self._arguments = list(arguments)
        self._given = self._runtime.pinned(list(map(nbytes_of, arguments)))
        self._logits: np.ndarray | None = None  # where they are copied to, once somebody asks
        graph = self._recorded(step)
        try:
            self._graph = self._runtime.made("cudaGraphInstantiate", graph, ctypes.c_ulonglong(0))
        finally:
            self._runtime.attempted("cudaGraphDestroy", graph)
        free = self._runtime.attempted
        weakref.finalize(self, free, "cudaGraphExecDestroy", self._graph).atexit = False

    def _recorded(self, step: Callable[..., Results]) -> ctypes.c_void_p:
        """The graph of the copies and the step."""
        runtime, graph = self._runtime, ctypes.c_void_p()
        stream = self._stream.handle
        runtime("cudaStreamBeginCapture", stream, RELAXED)
        try:
            with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), stream.value or 0):
                self._record(step)
        except BaseException:
            runtime.attempted("cudaStreamEndCapture", stream, ctypes.byref(graph))
            runtime.attempted("cudaGetLastError")
            raise
        runtime("cudaStreamEndCapture", stream, ctypes.byref(graph))
        return graph

    def _record(self, step: Callable[..., Results]) -> None:
        for tensor, given in zip(self._arguments, self._given, strict=True):
            place, nbytes = given.ctypes.data, given.nbytes
            self._runtime.copy(_address(tensor), place, nbytes, TO_DEVICE, self._stream.handle)
        self._results = step(*self._arguments)
        self._copies = self._runtime.pinned(list(map(nbytes_of, self._results.copied)))
        for tensor, copy in zip(self._results.copied, self._copies, strict=True):
            self._copied(tensor, copy)

    def launch(self, rows: Sequence[np.ndarray]) -> None:
        """Begins a step of other arguments, which writes over the results of the one before."""
        if self._launched == self._stream.waits:
            self._stream.wait()  # the one before may still read its arguments
        for given, row in zip(self._given, rows, strict=True):
            given.view(row.dtype)[...] = row.ravel()
        self._runtime("cudaGraphLaunch", self._graph, self._stream.handle)
        self._launched = self._stream.waits

    @property
    def logits(self) -> Any:
        """The logits, on the device."""
        return self._results.logits

    def results(self) -> list[np.ndarray]:
        """Waits for the step, if it gives anything: what is copied every time."""
        if self._copies:
            self._stream.wait()
        return self.read()

    def read(self) -> list[np.ndarray]:
        """What was copied, after a wait."""
        copied = zip(self._copies, self._results.copied, strict=True)
        return [_values(copy, tensor) for copy, tensor in copied]

    def fetch_logits(self) -> Callable[[], np.ndarray]:
        """Puts the copy of all logits behind the step. What it returns gives them, float32
        [rows, padded vocab], after the next wait.
        """
        copy = self._logits_copied()
        return lambda: _values(copy, self._results.logits)

    def _logits_copied(self) -> np.ndarray:
        if self._logits is None:
            (self._logits,) = self._runtime.pinned([nbytes_of(self._results.logits)])
        self._copied(self._results.logits, self._logits)
        return self._logits

    def _copied(self, tensor: Any, copy: np.ndarray) -> None:
        place, nbytes = copy.ctypes.data, copy.nbytes
        self._runtime.copy(place, _address(tensor), nbytes, TO_HOST, self._stream.handle)

    def wait(self) -> None:
        """Until everything is done that was put behind the step."""
        self._stream.wait()


def nbytes_of(tensor: Any) -> int:
    """Bytes of a tensor."""
    return prod(tensor.shape) * np.dtype(str(tensor.dtype)).itemsize


def _values(copy: np.ndarray, tensor: Any) -> np.ndarray:
    """What was copied of a tensor, in memory of its own."""
    return copy.view(str(tensor.dtype)).reshape(tuple(tensor.shape)).copy()


def _address(tensor: Any) -> int:
    """Where a tensor lies on the device."""
    return tensor.data_ptr()
