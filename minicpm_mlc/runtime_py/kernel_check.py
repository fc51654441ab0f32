"""One kernel of a library, run alone on its cases and held against what the definitions say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.base.errors import BundleError, DeviceError
from minicpm_mlc.bundle.kernel_cases import WORDS, Case, Expected, word_values
from minicpm_mlc.runtime_py.protocols import KernelCalls

UNWRITTEN = 0x77  # of every byte of an output: finite as a float, and far from any answer
REPEATS = 3


@dataclass(frozen=True)
class Checked:
    """A case's result: `seconds` is the fastest of the calls, reading the outputs included; 0 where
    none was timed.
    """

    operator: str
    kernel: str
    nmse: float
    limit: float
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """False for a NaN too."""
        return self.nmse <= self.limit


def check(library: KernelCalls, case: Case, timed: bool = True) -> Checked:
    """Run a case on a library of this process, `timed` or once.

    Raises BundleError if the kernel doesn't run at all, DeviceError if the device fails.
    """
    inputs = [tiled.array() for tiled in case.inputs]
    # before the call, which may write into the inputs
    wanted = [_wanted(inputs, expected) for expected in case.expected]
    arguments = [*inputs, *(_unwritten(e) for e in case.expected if e.places is None)]
    tensors = [library.memory.tensor(array) for array in arguments]

    def call() -> list[np.ndarray]:
        library.kernel(case.kernel)(*tensors)
        return [library.memory.array(tensors[e.argument]) for e in case.expected]

    try:
        got = [np.array(array) for array in call()]
        seconds = min(_seconds(call) for _ in range(REPEATS)) if timed else 0.0
    except DeviceError:
        raise
    except Exception as error:
        raise BundleError(
            f"{case.operator} doesn't run on {library.memory.name}: {error}"
        ) from error
    nmse = max(map(_nmse, got, wanted, case.expected))
    return Checked(case.operator, case.kernel, nmse, case.limit, seconds)


def _wanted(inputs: Sequence[np.ndarray], expected: Expected) -> np.ndarray:
    """The whole argument as it should be after the call."""
    values = expected.values.array()
    if expected.places is None:
        return values
    whole = inputs[expected.argument].copy()
    whole.ravel()[expected.places] = values
    return whole


def _unwritten(expected: Expected) -> np.ndarray:
    shape = expected.values.shape
    dtype = expected.values.tile.dtype
    if expected.words:
        shape = (*shape[:-1], WORDS)
        dtype = np.dtype(np.int32)
    return (
        np.full(int(np.prod(shape)) * dtype.itemsize, UNWRITTEN, np.uint8)
        .view(dtype)
        .reshape(shape)
    )


def _nmse(got: np.ndarray, wanted: np.ndarray, expected: Expected) -> float:
    """Squared error over the squared size of what was to be written; a change elsewhere counts as
    error.

    Of new whole numbers, such as ids: the share that differs.
    """
    if got.dtype.kind == "i" and expected.places is None and not expected.words:
        return float((got != wanted).mean())
    got = word_values(got) if expected.words else got.astype(np.float64)
    size = expected.values.array().astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(((got - wanted) ** 2).sum() / max((size**2).sum(), 1e-30))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
