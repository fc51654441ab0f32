"""The OpenCL target: kernels as OpenCL C 1.2, compiled by the device's own driver when they are
first launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from minicpm_mlc.targets.gpu_target import DOT8, DotTarget

# functions that kernels call by name (ops/gpu/intrinsics.py); reading a float16 takes no extension,
# and a device whose compiler knows no dot product multiplies byte by byte
PRELUDE = """#ifndef MINICPM_PRELUDE
#define MINICPM_PRELUDE
static float half_bits_to_float(ushort bits) {
  return vload_half(0, (const __private half*)&bits);
}
#ifdef __opencl_c_integer_dot_product_input_4x8bit_packed
static int dot_unsigned(uint weights, int values, int sum) {
  return dot_4x8packed_us_int(weights, as_uint(values)) + sum;
}
static int dot_signed(uint weights, int values, int sum) {
  return dot_4x8packed_ss_int(weights, as_uint(values)) + sum;
}
#else
static int dot_unsigned(uint weights, int values, int sum) {
  int4 products = convert_int4(as_uchar4(weights)) * convert_int4(as_char4(values));
  return products.x + products.y + products.z + products.w + sum;
}
static int dot_signed(uint weights, int values, int sum) {
  int4 products = convert_int4(as_char4(weights)) * convert_int4(as_char4(values));
  return products.x + products.y + products.z + products.w + sum;
}
#endif
#endif
"""


@dataclass(frozen=True)
class OpenCLTarget(DotTarget):
    """Any OpenCL 1.2 device."""

    device: ClassVar[str] = "opencl"
    architectures: ClassVar[dict[str, str]] = {DOT8: "devices with cl_khr_integer_dot_product"}
    buffer_bytes: ClassVar[int | None] = 128 << 20  # the standard's least
    limits: ClassVar[dict[str, int]] = {
        "max_num_threads": 256,  # of a workgroup
        "thread_warp_size": 1,  # nothing is assumed of threads that run together
        "max_shared_memory_per_block": 32768,
    }

    def tvm_target(self) -> Any:
        """The target as TVM's compiler takes it."""
        _use_prelude()
        return super().tvm_target()


@cache
def _use_prelude() -> None:
    """Have TVM pass on every kernel's OpenCL C with the prelude before it."""
    import tvm_ffi

    def with_prelude(source: str, _: Any) -> str:
        return PRELUDE + source

    tvm_ffi.register_global_func("tvm_callback_opencl_postproc", with_prelude)
