// The quick form of `minicpm-mlc verify`: a device is tried once with a bundle's kernels before anything it says is
// believed; as minicpm_mlc/runtime_py/device_check.py, which remembers it in the same files but ends early: here a second
// library may answer at once.
#pragma once

#include "bundle.h"
#include "kernel_cases.h"
#include "library.h"

namespace minicpm {

// Throws DeviceError where CheckKernels found this device wrong before.
void RefuseWrongDevice(const Bundle& bundle);

// Tries some kernels of the bundle, once per library, device and driver. Throws DeviceError for one that computes wrong or
// doesn't run. Nothing to be tried of a processor.
void CheckKernels(const Bundle& bundle, const Library& library);

// Runs a case; the largest NMSE of what its kernel wrote.
double Tried(const KernelCase& kernel_case, const Library& library);

}  // namespace minicpm
