// Kernels as a device's driver builds them, and what it made of them, kept on disk: drivers of phones take seconds.
#pragma once

#include <string>

#include "device.h"

namespace minicpm {
namespace opencl {

// The kernels of this source. Throws RuntimeError with the driver's log when it can't build them.
cl_program Build(const Driver& cl, const Device& device, const std::string& source);

}  // namespace opencl
}  // namespace minicpm
