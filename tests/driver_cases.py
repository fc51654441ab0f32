"""Drivers made to fail or to have little memory, and Pythons of their own that use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
LIBRARY = {"vulkan": "MINICPM_VULKAN_LIBRARY", "opencl": "MINICPM_OPENCL_LIBRARY"}
LOST = {
    "vulkan": ("vkQueueSubmit", "VK_ERROR_DEVICE_LOST"),
    "opencl": ("clEnqueueReadBuffer", "-2"),
}
START = """
import numpy as np
from minicpm_mlc.runtime_py.library import load_runtime, tvm_ffi
from minicpm_mlc.runtime_py.memory import open_memory
load_runtime()
"""
FAILING = {
    "vulkan": """
#include <dlfcn.h>
#include <string.h>
#include <vulkan/vulkan.h>
static PFN_vkGetInstanceProcAddr instance_function;
static PFN_vkGetDeviceProcAddr device_function;
static VkResult FUNCTION(void) { return RESULT; }
static PFN_vkVoidFunction find(VkDevice device, const char* name) {
  return strcmp(name, NAME) ? device_function(device, name) : (PFN_vkVoidFunction)FUNCTION;
}
PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char* name) {
  void* library = dlopen("libvulkan.so.1", RTLD_NOW);
  if (!instance_function) instance_function = dlsym(library, "vkGetInstanceProcAddr");
  PFN_vkVoidFunction found = instance_function(instance, name);
  if (strcmp(name, "vkGetDeviceProcAddr")) return found;
  device_function = (PFN_vkGetDeviceProcAddr)found;
  return (PFN_vkVoidFunction)find;
}
""",
    "opencl": "int FUNCTION(void) { return RESULT; }",
}
SMALL = {  # a GPU beside the host with so many BYTES of its own memory
    "vulkan": """
#include <dlfcn.h>
#include <string.h>
#include <vulkan/vulkan.h>
static PFN_vkGetInstanceProcAddr instance_function;
static PFN_vkGetPhysicalDeviceProperties2 properties;
static PFN_vkGetPhysicalDeviceMemoryProperties2 memory;
static void other_properties(VkPhysicalDevice device, VkPhysicalDeviceProperties2* found) {
  properties(device, found);
  found->properties.deviceType = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
}
static void other_memory(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties2* found) {
  memory(device, found);
  VkPhysicalDeviceMemoryBudgetPropertiesEXT* budget = found->pNext;
  for (int i = 0; i < VK_MAX_MEMORY_HEAPS; ++i) {
    found->memoryProperties.memoryHeaps[i].size = BYTES;
    if (budget) budget->heapBudget[i] = BYTES, budget->heapUsage[i] = 0;
  }
}
PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char* name) {
  void* library = dlopen("libvulkan.so.1", RTLD_NOW);
  if (!instance_function) instance_function = dlsym(library, "vkGetInstanceProcAddr");
  PFN_vkVoidFunction found = instance_function(instance, name);
  if (!strcmp(name, "vkGetPhysicalDeviceProperties2"))
    return properties = (void*)found, (void*)other_properties;
  if (!strcmp(name, "vkGetPhysicalDeviceMemoryProperties2"))
    return memory = (void*)found, (void*)other_memory;
  return found;
}
""",
    "opencl": """
#include <CL/cl.h>
#include <dlfcn.h>
cl_int clGetDeviceInfo(
    cl_device_id device, cl_device_info what, size_t size, void* value, size_t* used) {
  cl_int (*ask)(cl_device_id, cl_device_info, size_t, void*, size_t*) =
      dlsym(dlopen("libOpenCL.so.1", RTLD_NOW), "clGetDeviceInfo");
  cl_int status = ask(device, what, size, value, used);
  if (value && what == CL_DEVICE_HOST_UNIFIED_MEMORY) *(cl_bool*)value = CL_FALSE;
  if (value && what == CL_DEVICE_GLOBAL_MEM_SIZE) *(cl_ulong*)value = BYTES;
  return status;
}
""",
}


def failing(device: str, folder: Path, function: str, result: str) -> dict[str, str]:
    """The environment in which one function of the device's driver fails."""
    return built(
        device,
        folder,
        FAILING[device],
        f"-DRESULT={result}",
        f'-DNAME="{function}"',
        f"-DFUNCTION={function}",
    )


def lost(device: str, folder: Path) -> dict[str, str]:
    """The environment in which the device is lost as soon as it does something."""
    return failing(device, folder, *LOST[device])


def small(device: str, folder: Path, nbytes: int) -> dict[str, str]:
    """The environment in which the device is a GPU with so much memory."""
    return built(device, folder, SMALL[device], f"-DBYTES={nbytes}")


def built(device: str, folder: Path, text: str, *macros: str) -> dict[str, str]:
    """The environment with a driver of this C text; what isn't in it is found in OpenCL's library,
    which it needs.
    """
    source, library = folder / "driver.c", folder / "driver.so"
    source.write_text(text)
    needed = ["-Wl,--no-as-needed", "-l:libOpenCL.so.1"] if device == "opencl" else []
    flags = ["-shared", "-fPIC", "-w", "-DVK_NO_PROTOTYPES", "-DCL_TARGET_OPENCL_VERSION=120"]
    subprocess.run(["cc", *flags, *macros, str(source), *needed, "-o", str(library)], check=True)
    return {LIBRARY[device]: str(library)}


def in_new_process(code: str, **environment: str) -> str:
    """What a Python of its own prints, with TVM's runtime alone."""
    program = [sys.executable, "-c", START + code]
    done = subprocess.run(
        program, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Validation" not in done.stdout, done.stdout
    return done.stdout


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    program = [sys.executable, "-m", "minicpm_mlc", *arguments]
    return subprocess.run(
        program, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
