// WebAssembly's only thread runs all loops itself.
#include "thread_pool.h"

#include "error.h"

namespace minicpm {

const ThreadPool& ThreadPool::Of(const std::string&) {
  static const ThreadPool pool([](uint32_t, uint32_t) { return uint32_t{1}; }, [] {});
  return pool;
}

ThreadPool::Turn::Turn(const ThreadPool& pool, int, int64_t) : pool_(pool) { pool_.enter_(1, 1); }

ThreadPool::Turn::~Turn() { pool_.leave_(); }

}  // namespace minicpm
