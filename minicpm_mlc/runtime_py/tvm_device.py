"""The runtimes of devices that TVM's runtime library alone does not drive: libraries beside it in
TVM's wheel, and the package minicpm-mlc-native.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.tvm_files import load_global, tvm_library


def load_device_runtime(device: str) -> None:
    """Load what drives a device of bundle/devices.py. Raises BundleError naming what it needs."""
    source = DEVICE_RUNTIMES[device].source
    if source == "tvm" or _is_loaded(device):
        return
    if source == "tvm-library":
        _load_library_of_tvm(device)
    else:
        _load_native_package(device)


def _is_loaded(device: str) -> bool:
    return tvm_ffi.get_global_func(f"device_api.{device}", allow_missing=True) is not None


def _load_library_of_tvm(device: str) -> None:
    needs = DEVICE_RUNTIMES[device].needs
    library = tvm_library(f"tvm_runtime_{device}")
    if library is None:
        raise BundleError(f"TVM has no {device} runtime for this system; it takes {needs}")
    try:
        for path in [*_needed_first(device), library]:
            load_global(path)
    except OSError as error:
        raise BundleError(
            f"TVM's {device} runtime does not load ({error}); it takes {needs}"
        ) from error


def _needed_first(device: str) -> list[Path]:
    """The library from another wheel, which the system's loader would not find; none where there is
    none.
    """
    pattern = DEVICE_RUNTIMES[device].library
    found = [path for entry in sys.path for path in Path(entry).glob(pattern)] if pattern else []
    return found[:1]


def _load_native_package(device: str) -> None:
    try:
        importlib.import_module("minicpm_mlc_native").load()
    except (ImportError, OSError) as error:
        raise BundleError(
            f"the runtime for {device} is missing ({error}); in a checkout, try: make native"
        ) from error
    if not _is_loaded(device):
        raise BundleError(
            f"minicpm-mlc-native was built without {device}, whose headers were missing; "
            "install opencl-headers and libvulkan-dev, then: pip install --force-reinstall "
            "--no-deps ./native"
        )
