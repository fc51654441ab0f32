// Loops of compiled code run on a pool that the engine names: a library of ours brings one
// (minicpm_mlc/targets/thread_pool), so TVM's own pool is not built in. Without one a loop is one task.
#include "backend.h"

MinicpmLaunch minicpm_launch = nullptr;

extern "C" int TVMBackendParallelLaunch(FTVMParallelLambda body, void* data, int tasks) {
  if (minicpm_launch) return minicpm_launch(body, data, tasks);
  TVMParallelGroupEnv alone{nullptr, 1};
  return body(0, &alone, data);
}

extern "C" int TVMBackendParallelBarrier(int, TVMParallelGroupEnv*) { return 0; }
