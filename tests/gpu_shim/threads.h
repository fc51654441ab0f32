// Runs GPU kernels on a CPU: a workgroup's threads take turns on one thread of the machine, each up to the next barrier, in
// order or backwards; so a missing barrier shows as a wrong result each time, and one that not all threads reach is an error.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;

namespace shim {

constexpr int MAX_THREADS = 1024;
constexpr int STACK_BYTES = 1 << 17;

static char stacks[MAX_THREADS][STACK_BYTES];
static ucontext_t first_turn[MAX_THREADS], start;
static jmp_buf turns[MAX_THREADS], scheduler;
static bool started[MAX_THREADS];
static int current, waiting, finished;
static void (*body)(unsigned group, unsigned thread);
static unsigned group;

static void give_up_turn() {
  if (!_setjmp(turns[current])) _longjmp(scheduler, 1);
}

static void barrier() {
  ++waiting;
  give_up_turn();
}

static void run_thread() {
  for (;;) {
    body(group, current);
    ++finished;
    give_up_turn();
  }
}

static void give_turn(int thread) {
  current = thread;
  if (_setjmp(scheduler)) return;
  if (started[thread]) _longjmp(turns[thread], 1);
  started[thread] = true;
  ucontext_t& context = first_turn[thread];
  getcontext(&context);
  context.uc_stack.ss_sp = stacks[thread];
  context.uc_stack.ss_size = STACK_BYTES;
  makecontext(&context, run_thread, 0);
  swapcontext(&start, &context);
}

// Runs `threads` threads of each group, the groups in order or backwards too; false when some wait at a barrier that others don't come to.
static bool run(unsigned groups, int threads, bool backwards, void (*kernel_body)(unsigned, unsigned)) {
  body = kernel_body;
  for (unsigned turn = 0; turn < groups; ++turn) {
    group = backwards ? groups - 1 - turn : turn;
    do {
      waiting = finished = 0;
      for (int i = 0; i < threads; ++i) give_turn(backwards ? threads - 1 - i : i);
      if (waiting && finished) return false;
    } while (waiting);
  }
  return true;
}

static inline float half_number(ushort bits) {
  _Float16 number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

struct Pointer {  // a buffer's address, as whatever pointer the kernel takes
  void* address;
  template <class T>
  operator T*() const { return static_cast<T*>(address); }
};

}  // namespace shim
