"""One file per device: what to compile for, how to link, what is needed to run."""

from minicpm_mlc.targets.registry import (
    DEVICES,
    GPUS,
    Device,
    Target,
    find_device,
    get_target,
    gpu_class,
)

__all__ = ["DEVICES", "GPUS", "Device", "Target", "find_device", "get_target", "gpu_class"]
