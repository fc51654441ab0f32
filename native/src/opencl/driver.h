// The functions of the system's OpenCL library, opened when first used.
#pragma once

#include <CL/cl.h>

#define MINICPM_OPENCL_FUNCTIONS(F)                                                                              \
  F(clGetPlatformIDs) F(clGetDeviceIDs) F(clGetDeviceInfo) F(clCreateContext) F(clCreateCommandQueue)            \
  F(clCreateBuffer) F(clReleaseMemObject) F(clEnqueueReadBuffer) F(clEnqueueWriteBuffer) F(clEnqueueCopyBuffer)  \
  F(clFinish) F(clFlush) F(clCreateProgramWithSource) F(clCreateProgramWithBinary) F(clBuildProgram)             \
  F(clGetProgramInfo) F(clGetProgramBuildInfo) F(clReleaseProgram) F(clCreateKernel) F(clReleaseKernel)          \
  F(clSetKernelArg) F(clEnqueueNDRangeKernel)

namespace minicpm {
namespace opencl {

struct Driver {
#define MINICPM_DECLARE(name) decltype(&::name) name;
  MINICPM_OPENCL_FUNCTIONS(MINICPM_DECLARE)
#undef MINICPM_DECLARE
};

// nullptr where no OpenCL library is installed. The environment's MINICPM_OPENCL_LIBRARY names another to open.
const Driver* FindDriver();

// Throws RuntimeError with OpenCL's error, what failed and, where there is one, a remedy.
void Check(cl_int status, const char* what);

}  // namespace opencl
}  // namespace minicpm
