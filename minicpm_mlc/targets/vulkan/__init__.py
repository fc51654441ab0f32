"""The Vulkan target: kernels as SPIR-V 1.3, which any Vulkan 1.1 driver takes. The code generator
is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from minicpm_mlc.targets.embed import with_changed_imports
from minicpm_mlc.targets.gpu_target import DOT8, DotTarget
from minicpm_mlc.targets.vulkan.artifact import register, unwrapped


@dataclass(frozen=True)
class VulkanTarget(DotTarget):
    """Any Vulkan 1.1 device with 8- and 16-bit numbers in storage buffers. Without `--arch` nothing
    else is assumed of it.
    """

    device: ClassVar[str] = "vulkan"
    vector_elements: ClassVar[bool] = False
    architectures: ClassVar[dict[str, str]] = {
        DOT8: "devices with VK_KHR_shader_integer_dot_product"
    }
    buffer_bytes: ClassVar[int | None] = 128 << 20  # the standard's least
    limits: ClassVar[dict[str, int]] = {
        "max_num_threads": 256,  # of a workgroup
        "thread_warp_size": 1,  # nothing is assumed of threads that run together
        "max_shared_memory_per_block": 32768,
        "supports_8bit_buffer": True,
        "supports_16bit_buffer": True,
    }

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it."""
        register()
        return super().tvm_target()

    def export(self, executable: Any, library: str) -> None:
        """Write what TVM compiled to the library of this name, with the kernels as the Vulkan
        runtime reads them.
        """
        pack = with_changed_imports(unwrapped, self.host.platform)
        executable.export_library(library, fcompile=self.link, fpack_imports=pack)
