#!/bin/sh
# What the tests of devices need beside the venv $1: OpenCL and Vulkan drivers for CPUs with our runtimes for them, Vulkan's
# validators, arm64's Python under qemu, wine with TVM's libraries for Windows. What can't be had is named, and its tests are skipped.
venv=$1
missing=
have() { [ -e "$1" ] || missing="$missing $2"; }
have /usr/include/CL/cl.h opencl-headers
have /etc/OpenCL/vendors/pocl.icd "ocl-icd-libopencl1 pocl-opencl-icd"
have /usr/include/vulkan/vulkan.h libvulkan-dev
have /usr/share/vulkan/icd.d/lvp_icd.*.json mesa-vulkan-drivers
have /usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json vulkan-validationlayers
command -v spirv-val >/dev/null || missing="$missing spirv-tools"
command -v g++ >/dev/null || missing="$missing g++"
command -v wine64 >/dev/null || [ -x /usr/lib/wine/wine64 ] || missing="$missing wine64"
command -v qemu-aarch64-static >/dev/null || missing="$missing qemu-user-static"
if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $missing; } >/dev/null 2>&1 &&
        rm -f "$venv/.native" ||  # headers may be there now that weren't when it was built
        echo "not installed, so some tests will be skipped: apt-get install$missing" >&2
fi
make native || echo "no runtimes for OpenCL and Vulkan were built, so their tests will be skipped" >&2
[ -d build/arm64/site/tvm ] || sh tools/arm64_root.sh build/arm64 "$venv/bin/python" ||
    { rm -rf build/arm64; echo "no arm64 Python, so its tests will be skipped" >&2; }
[ -e build/windows/tvm_runtime.dll ] || sh tools/windows_root.sh build/windows "$venv/bin/python" ||
    { rm -rf build/windows; echo "no TVM for Windows, so its library is not run" >&2; }
