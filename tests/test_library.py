"""How the compiled functions are called: on how many threads, and on what memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import DeviceError, EngineError
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.library import LocalLibrary, Pools
from minicpm_mlc.runtime_py.machine import CORES
from minicpm_mlc.runtime_py.mapped_files import MappedFiles
from minicpm_mlc.runtime_py.memory import ALIGNMENT, SMALL, DeviceMemory, HostMemory

TOKENS = [5, 6, 7]


def threads_used() -> int:
    """How many threads a call from this thread would use."""
    return tvm_ffi.get_global_func("runtime.NumThreads")()


def in_a_new_thread(call: Callable[[], Any]) -> Any:
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return tiny_bundle("MiniCPM4-0.5B").path


@pytest.mark.skipif(len(CORES) < 2, reason="one processor")
def test_every_engine_keeps_its_own_number_of_threads(bundle):
    with Engine(bundle, threads=1, context=64) as one, Engine(bundle, threads=2, context=64) as two:
        for engine in (one, two, one):
            engine.prefill(TOKENS)
            assert threads_used() == engine.threads


@pytest.mark.skipif(len(CORES) < 2, reason="one processor")
def test_calls_from_another_thread_use_as_many(bundle):
    with Engine(bundle, threads=2, context=64) as engine:
        assert in_a_new_thread(lambda: (engine.prefill(TOKENS), threads_used())[1]) == 2


def test_more_threads_than_processors_are_refused(bundle):
    with pytest.raises(
        EngineError, match=f"threads is 1000, but this process may use {len(CORES)}"
    ):
        Engine(bundle, threads=1000, context=64)


def misaligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT + array.itemsize
    copy = np.ndarray(array.shape, array.dtype, raw, start)
    copy[...] = array
    return copy


def test_an_argument_that_needs_no_copy_leaves_its_place_free():
    memory = HostMemory()
    large = np.frombuffer(memory.array(memory.zeros((SMALL,), np.dtype(np.int32))), np.int32)
    first, second = memory.arguments([large, misaligned(np.arange(3, dtype=np.int32))])
    assert memory.array(first).ctypes.data == large.ctypes.data and memory.array(
        second
    ).tolist() == [0, 1, 2]


@pytest.mark.parametrize("n", [0, 1, SMALL // 4, SMALL])
def test_arguments_are_aligned_and_apart_whatever_the_arrays_are(n):
    memory = HostMemory()
    for turn in range(3):  # the memory of the turn before is used again
        arrays = [misaligned(np.arange(n, dtype=np.int32) + place + turn) for place in range(2)]
        arrays += [np.ones((n, 3), np.float32)[:, 1:]]
        tensors = [memory.array(tensor) for tensor in memory.arguments(arrays)]
        for array, tensor in zip(arrays, tensors, strict=True):
            assert np.array_equal(array, tensor) and tensor.dtype == array.dtype
            assert tensor.ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "Check failed: (e == cudaSuccess) is false: CUDA: out of memory",
            "GPU: CUDA: out of memory; start the program again",
        ),
        (
            "Vulkan: waiting failed; install a newer driver",
            "GPU: Vulkan: waiting failed; install a newer driver$",
        ),
    ],
)
def test_what_a_failing_device_says_is_an_error_with_what_to_do(said: str, shown: str):
    def fail(*_: Any) -> None:
        raise RuntimeError(said)

    memory, library = object.__new__(DeviceMemory), object.__new__(LocalLibrary)
    memory.name = "GPU"
    library.memory, library.threads, library._params = memory, 1, None
    library._files = MappedFiles([])
    library.functions = {"decode": [fail], "commit": [lambda *_: 1 / 0]}
    with pytest.raises(DeviceError, match=f"^{shown}"):
        library.run("decode", (), Pools(None, 0))
    with pytest.raises(ZeroDivisionError):  # a mistake of ours stays one
        library.run("commit", (), Pools(None, 0))
