"""Where tensors lie: in this process's memory, where NumPy sees them too, or in a device's."""

from __future__ import annotations

import ctypes
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from math import prod
from typing import Any, Protocol

import numpy as np

from minicpm_mlc.base.errors import BundleError, DeviceError, EngineError
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.runtime_py.allocator import disturbed
from minicpm_mlc.runtime_py.cuda_graph import memory_ran_out
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.machine import available_memory, cpu_name
from minicpm_mlc.runtime_py.tvm_device import load_device_runtime

ALIGNMENT = 64  # bytes; compiled code loads whole vectors
SMALL = 4096  # bytes that are sooner copied to a tensor than made one
POOLED_ALLOCATOR = 2
CPU = DEVICE_RUNTIMES["cpu"].dlpack
# TVM's numbers of a device's attributes
EXISTS = 0
NAME = 5
DRIVER = 12
TOTAL = 14
FREE = 15
TRY_AGAIN = (
    "start the program again; if it fails again try a smaller --context, a newer driver, or "
    "compile for --device cpu"
)


class Memory(Protocol):
    """What the library asks of a device's memory. `name`: the device's; `identity`: the same with
    the driver's version.
    """

    name: str

    @property
    def identity(self) -> str:
        """The device's name, and its driver's version where it has one."""
        ...

    @property
    def free(self) -> int:
        """Bytes that can be taken."""
        ...

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call compiled code, or what else uses the device. Raises DeviceError when the device
        fails.
        """
        ...

    def start(self, vm: Any) -> None:
        """Tell the virtual machine where it works."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new tensor; zeros in host memory, on a device anything."""
        ...

    def tensor(self, array: np.ndarray) -> Any:
        """An array as a tensor, not copied where that can be helped: the caller keeps it alive."""
        ...

    def arguments(self, arrays: Iterable[np.ndarray]) -> list[Any]:
        """The arrays of one call as tensors, which last until the next one."""
        ...

    def array(self, tensor: Any) -> np.ndarray:
        """The values of a tensor."""
        ...


_drivers: dict[str, int] = {}  # by device: the process that loaded its driver


def open_memory(device: str) -> Memory:
    """The memory of a bundle's device. Raises BundleError when the device, its driver or its
    runtime is missing, EngineError in the child of a process that uses it.
    """
    runtime = DEVICE_RUNTIMES[device]
    if runtime.in_process:
        return HostMemory()
    if _drivers.setdefault(device, os.getpid()) != os.getpid():
        raise EngineError(
            f"the {device} driver can't be used in a process that was forked from one that uses "
            "it; start workers with spawn, or fork before the first engine is opened"
        )
    load_device_runtime(device)
    if not _attribute(runtime.dlpack, EXISTS):
        raise BundleError(
            f"no {device} device was found; install its driver, or compile for --device cpu"
        )
    return DeviceMemory(runtime.dlpack)


def _attribute(device_type: int, which: int) -> Any:
    return tvm_ffi.get_global_func("runtime.GetDeviceAttr")(device_type, 0, which)


def reserve(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An aligned zeroed array whose memory is not touched yet."""
    raw = np.zeros(prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, raw, -raw.ctypes.data % ALIGNMENT)


class Staging:
    """Aligned memory of one place among a call's arguments, kept from call to call, as new memory
    takes 5 us.
    """

    def __init__(self) -> None:
        self._memory = reserve((0,), np.dtype(np.uint8))
        self._tensors: dict[
            Any, tuple[np.ndarray, Any]
        ] = {}  # by shape and dtype: the array, and the tensor it is

    def copy(self, array: np.ndarray) -> Any:
        """A tensor with the array's values."""
        kind = array.shape, array.dtype
        held, tensor = self._tensors.get(kind) or self._hold(kind, array.nbytes)
        held[...] = array
        return tensor

    def _hold(self, kind: tuple[tuple[int, ...], np.dtype], nbytes: int) -> tuple[np.ndarray, Any]:
        if nbytes > self._memory.nbytes:
            self._memory = reserve((2 * nbytes,), np.dtype(np.uint8))
            self._tensors = {}
        held = np.ndarray(*kind, buffer=self._memory)
        self._tensors[kind] = held, tvm_ffi.from_dlpack(held)
        return self._tensors[kind]


class HostMemory:
    """NumPy's memory, shared with the library."""

    def __init__(self) -> None:
        self.name = self.identity = cpu_name()
        self._staging: defaultdict[int, Staging] = defaultdict(
            Staging
        )  # by an argument's place in the call

    @property
    def free(self) -> int:
        """Bytes that can be taken without swapping."""
        return available_memory()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call compiled code."""
        return function(*arguments)

    def start(self, vm: Any) -> None:
        """Tell the virtual machine where it works."""
        vm["vm_initialization"](CPU, 0, POOLED_ALLOCATOR)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new tensor of zeros; its memory is not touched yet."""
        return tvm_ffi.from_dlpack(reserve(shape, dtype))

    def tensor(self, array: np.ndarray) -> Any:
        """An array as a tensor: the same memory where it is aligned and may be written (DLPack
        knows no other), a copy elsewhere.
        """
        if not (_is_aligned(array) and array.flags.writeable):
            aligned = reserve(array.shape, array.dtype)
            aligned[...] = array
            array = aligned
        return tvm_ffi.from_dlpack(array)

    def arguments(self, arrays: Iterable[np.ndarray]) -> list[Any]:
        """The arrays of one call as tensors, which last until the next one."""
        return [self._argument(place, array) for place, array in enumerate(arrays)]

    def _argument(self, place: int, array: np.ndarray) -> Any:
        if array.nbytes > SMALL and _is_aligned(array):
            return tvm_ffi.from_dlpack(array)
        return self._staging[place].copy(array)

    def array(self, tensor: Any) -> np.ndarray:
        """A tensor's memory as an array."""
        return np.from_dlpack(tensor)


def _is_aligned(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and not array.ctypes.data % ALIGNMENT


class DeviceMemory:
    """Memory that only kernels see: everything is copied there and back."""

    def __init__(self, device_type: int) -> None:
        """`device_type`: DLPack's number of the device's kind, whose runtime is loaded."""
        self._type = device_type
        kinds = (name for name, each in DEVICE_RUNTIMES.items() if each.dlpack == device_type)
        self.kind = next(kinds)  # its name in bundle/devices.py
        self._records = self.kind == "cuda"
        self._device = tvm_ffi.device(device_type, 0)
        self.name = str(_attribute(device_type, NAME))
        self.identity = f"{self.name} {_attribute(device_type, DRIVER)}"
        self._new = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        self._write = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")
        self._read = tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")
        self._view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")

    @property
    def free(self) -> int:
        """A device that doesn't tell has the host's memory, or a part of it."""
        own, total = (self.call(_attribute, self._type, which) for which in (FREE, TOTAL))
        return own if own is not None else min(available_memory(), total or available_memory())

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what uses the device. Raises DeviceError with what its runtime says."""
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise DeviceError(f"{self.name}: {_explained(str(error))}") from error
        finally:
            if self._records and memory_ran_out():
                disturbed()  # TVM's allocator has given back all that it kept, and tried again

    def start(self, vm: Any) -> None:
        """Tell the virtual machine where it works."""
        self.call(
            vm["vm_initialization"], self._type, 0, POOLED_ALLOCATOR, CPU, 0, POOLED_ALLOCATOR
        )  # the host is the last

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new tensor on the device, of any values. Raises DeviceError."""
        return self.call(
            self._new, tvm_ffi.Shape(shape), tvm_ffi.dtype(str(dtype)), self._device, None
        )

    def tensor(self, array: np.ndarray) -> Any:
        """An array copied to the device. Raises DeviceError."""
        tensor = self.zeros(array.shape, array.dtype)
        self.write(tensor, array)
        return tensor

    def write(self, tensor: Any, array: np.ndarray) -> None:
        """Copies an array to a tensor of its shape. Raises DeviceError."""
        array = np.ascontiguousarray(array)
        self.call(self._write, tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def part(self, tensor: Any, first: int, count: int) -> Any:
        """Rows of a tensor, in the same memory."""
        rest = tuple(tensor.shape)[1:]
        offset = first * prod(rest) * np.dtype(str(tensor.dtype)).itemsize
        return self._view(tensor, tvm_ffi.Shape((count, *rest)), tensor.dtype, offset)

    def arguments(self, arrays: Iterable[np.ndarray]) -> list[Any]:
        """The arrays copied to the device. Raises DeviceError."""
        return list(map(self.tensor, arrays))

    def array(self, tensor: Any) -> np.ndarray:
        """A tensor's values, copied from the device. Raises DeviceError."""
        array = np.empty(tuple(tensor.shape), np.dtype(str(tensor.dtype)))
        self.call(self._read, tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
        return array


def _explained(said: str) -> str:
    """What a runtime says, without the condition that TVM checked, and what to do; ours say that
    after a semicolon.
    """
    said = re.sub(r"^Check failed: .* is false: ", "", said.strip())
    return said if "; " in said else f"{said}; {TRY_AGAIN}"
