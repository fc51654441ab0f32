"""How the compiled functions are called: on how many threads, and on what memory."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import DeviceError, EngineError
from minicpm_mlc.runtime_py.allocator import KEPT_BYTES, KeptResults
from minicpm_mlc.runtime_py.library import LocalLibrary, Pools
from minicpm_mlc.runtime_py.machine import CORES
from minicpm_mlc.runtime_py.mapped_files import MappedFiles
from minicpm_mlc.runtime_py.memory import ALIGNMENT, SMALL, DeviceMemory, HostMemory, reserve
from minicpm_mlc.runtime_py.spent import Spent


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return tiny_bundle("MiniCPM4-0.5B").path


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


def test_an_array_that_may_only_be_read_is_copied():
    array = reserve((16,), np.dtype(np.int32))
    array[:] = range(16)
    array.flags.writeable = False
    assert HostMemory().tensor(array).numpy().tolist() == list(range(16))


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
    memory.name, memory._records = "GPU", False
    library.spent = Spent()
    library.memory, library.threads, library._params = memory, 1, None
    library._kept, library._busy, library._pool = KeptResults(), threading.Lock(), None
    library._process, library._steps, library._number = os.getpid(), None, 0
    library._files = MappedFiles([])
    library.functions = {"decode": [fail], "commit": [lambda *_: 1 / 0]}
    with pytest.raises(DeviceError, match=f"^{shown}"):
        library.run("decode", (), Pools(None, 0))
    with pytest.raises(ZeroDivisionError):  # a mistake of ours stays one
        library.run("commit", (), Pools(None, 0))
    library.device_name = "GPU"
    library._process -= 1  # as in the child of a fork
    with pytest.raises(EngineError, match=r"^GPU can't be used in a process"):
        library.run("decode", (), Pools(None, 0))


def test_rob_01_two_threads_are_never_inside_a_library_at_once(bundle: Path) -> None:
    with Engine(bundle, context=64) as engine:
        sequence = engine.open_sequence()  # its calls take no turn
        library = engine.library.local
        assert isinstance(library, LocalLibrary)
        with library._alone(), pytest.raises(EngineError, match="the library is busy in another"):
            sequence.decode(5)
        sequence.decode(5)


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_rob_02_memory_stays_after_results_of_any_size(demo_bundle: Path) -> None:
    before = resident()
    with Engine(demo_bundle, context=1100, attention="dense") as engine:
        engine.logits([5] * 1024)
        first, most = resident(), 0
        for n in range(1, 1 + engine.prefill_chunk, 2):  # 135 MB, if all were kept
            engine.logits([5] * n)
            most = max(most, resident())
        assert most - first < 2 * KEPT_BYTES
    gc.collect()
    assert resident() - before < KEPT_BYTES
