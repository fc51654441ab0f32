// The threads that compiled libraries share: the pool in each of them, of which a process uses one
// (minicpm_mlc/targets/thread_pool says how it works).
#pragma once

#include <cstdint>
#include <string>

namespace minicpm {

class ThreadPool {
 public:
  // That of this process, which is the first library's; fails for a library without one.
  static const ThreadPool& Of(const std::string& library);

  // While it lives, loops that this thread runs have so many threads.
  class Turn {
   public:
    // `rows`: how many rows the kernels work on. Fails where the system starts no more threads.
    Turn(const ThreadPool& pool, int threads, int64_t rows);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    const ThreadPool& pool_;
  };

 private:
  using Enter = uint32_t (*)(uint32_t threads, uint32_t tasks);
  using Leave = void (*)();

  ThreadPool(Enter enter, Leave leave) : enter_(enter), leave_(leave) {}
  static ThreadPool Load(const std::string& library);

  Enter enter_;
  Leave leave_;
};

}  // namespace minicpm
