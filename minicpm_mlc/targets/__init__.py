"""One file per device: what to compile for and how to link; the registry lists `--device`."""

from minicpm_mlc.targets.base import Target
from minicpm_mlc.targets.registry import DEVICE_OPTIONS, DeviceOption, get_target

__all__ = ["DEVICE_OPTIONS", "DeviceOption", "Target", "get_target"]
