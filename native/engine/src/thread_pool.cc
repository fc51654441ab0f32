#include "thread_pool.h"

#include <dlfcn.h>

#include "backend.h"
#include "error.h"

// A static program has no dlopen; its model's objects bring the pool.
extern "C" {
__attribute__((weak)) int minicpm_pool_launch(FTVMParallelLambda body, void* data, int32_t tasks);
__attribute__((weak)) uint32_t minicpm_pool_enter(uint32_t threads, uint32_t tasks);
__attribute__((weak)) void minicpm_pool_leave(void);
}

#if defined(__linux__) && !defined(__GLIBC__) && !defined(__ANDROID__)
#include <pthread.h>
// What the pool asks of glibc and bionic; musl has it by its other name.
extern "C" int __register_atfork(void (*before)(), void (*in_parent)(), void (*in_child)(), void*) {
  return pthread_atfork(before, in_parent, in_child);
}
#endif

namespace minicpm {
namespace {

// Tasks of a thread in each loop, as in minicpm_mlc/runtime_py/thread_pool.py: few rows stream the weights, which wants
// long runs of them.
constexpr int64_t kFewRows = 4;
constexpr uint32_t kTasksFew = 2, kTasksMany = 16;

}  // namespace

ThreadPool ThreadPool::Load(const std::string& library) {
  if (minicpm_pool_launch) {
    minicpm_launch = minicpm_pool_launch;
    return {minicpm_pool_enter, minicpm_pool_leave};
  }
  void* loaded = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);  // for good: the threads run its code
  auto symbol = [&](const char* name) {
    void* found = loaded ? dlsym(loaded, name) : nullptr;
    if (!found) Fail(MINICPM_BUNDLE, library, " has no ", name, ": it is no library of ours; ", kRepair);
    return found;
  };
  minicpm_launch = reinterpret_cast<MinicpmLaunch>(symbol("minicpm_pool_launch"));
  return {reinterpret_cast<Enter>(symbol("minicpm_pool_enter")), reinterpret_cast<Leave>(symbol("minicpm_pool_leave"))};
}

const ThreadPool& ThreadPool::Of(const std::string& library) {
  static const ThreadPool pool = Load(library);
  return pool;
}

ThreadPool::Turn::Turn(const ThreadPool& pool, int threads, int64_t rows) : pool_(pool) {
  uint32_t wanted = static_cast<uint32_t>(threads);
  uint32_t there = pool_.enter_(wanted, rows < kFewRows ? kTasksFew : kTasksMany);
  if (there < wanted) {
    pool_.leave_();
    Fail(MINICPM_FAILED, "the system started ", there - 1, " of ", wanted - 1, " threads; open the bundle with \"threads\": ",
         there);
  }
}

ThreadPool::Turn::~Turn() { pool_.leave_(); }

}  // namespace minicpm
