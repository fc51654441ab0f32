"""The device of a bundle before its library is loaded: its memory, or why bundles for it can't run
here.
"""

from __future__ import annotations

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.runtime_py.library import load_runtime
from minicpm_mlc.runtime_py.memory import Memory, open_memory


def open_device(device: str) -> Memory:
    """The memory of a kind of device. Raises BundleError when the device, its driver or its runtime
    is missing.
    """
    load_runtime()
    return open_memory(device)


def device_here(device: str) -> tuple[str | None, str | None]:
    """(name of the first such device, None), or (None, why there is none)."""
    try:
        return open_device(device).name, None
    except BundleError as error:
        return None, str(error)
