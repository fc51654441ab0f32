// What runs the loops of compiled code.
#pragma once

#include <tvm/runtime/c_backend_api.h>

#include <cstdint>

using MinicpmLaunch = int (*)(FTVMParallelLambda body, void* data, int32_t tasks);
extern MinicpmLaunch minicpm_launch;  // null: loops run on their caller alone
