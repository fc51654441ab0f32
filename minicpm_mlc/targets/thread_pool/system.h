// What the pool asks of a system: threads, yielding, sleeping on a number in memory, a clock, news of a fork.
// Declared here, as no C library's headers are at hand for Android or iOS.
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic uint32_t Number;

#if defined(__wasm__)  // a page's workers share the memory; engine.js starts them

#include <sched.h>
#include <time.h>
extern uint32_t minicpm_web_workers;  // that wait in minicpm_pool_work
#define EXPORT __attribute__((visibility("default")))

static uintptr_t this_thread(void) {
  static _Thread_local char here;
  return (uintptr_t)&here;
}
static void yield_core(void) { sched_yield(); }
static void sleep_while(Number *number, uint32_t value) {
  __builtin_wasm_memory_atomic_wait32((int *)number, (int)value, -1);
}
static void wake_sleepers(Number *number) { __builtin_wasm_memory_atomic_notify((int *)number, UINT32_MAX); }
static uint64_t nanoseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}
typedef void *ThreadResult;
static bool start_thread(ThreadResult (*body)(void *), uintptr_t argument) {
  (void)body;
  return argument <= minicpm_web_workers;
}
static void after_fork(void (*in_child)(void)) { (void)in_child; }

#elif defined(_WIN32)  // it has no fork

void *CreateThread(void *, uintptr_t stack, uint32_t (*)(void *), void *, uint32_t, uint32_t *);
int CloseHandle(void *);
uint32_t GetCurrentThreadId(void);
int SwitchToThread(void);
int WaitOnAddress(volatile void *, void *value, uintptr_t size, uint32_t milliseconds);
void WakeByAddressAll(void *);
int QueryPerformanceCounter(int64_t *);
int QueryPerformanceFrequency(int64_t *);
#define EXPORT __declspec(dllexport)

static uintptr_t this_thread(void) { return GetCurrentThreadId(); }
static void yield_core(void) { SwitchToThread(); }
static void sleep_while(Number *number, uint32_t value) {
  WaitOnAddress((void *)number, &value, sizeof value, UINT32_MAX);
}
static void wake_sleepers(Number *number) { WakeByAddressAll((void *)number); }
static uint64_t nanoseconds(void) {
  int64_t ticks, per_second;
  QueryPerformanceCounter(&ticks);
  QueryPerformanceFrequency(&per_second);
  return (uint64_t)(ticks / per_second * 1000000000 + ticks % per_second * 1000000000 / per_second);
}
typedef uint32_t ThreadResult;
static bool start_thread(ThreadResult (*body)(void *), uintptr_t argument) {
  void *thread = CreateThread(0, 0, body, (void *)argument, 0, 0);
  return thread && CloseHandle(thread);
}
static void after_fork(void (*in_child)(void)) { (void)in_child; }

#else

int pthread_create(uintptr_t *thread, const void *, void *(*)(void *), void *);
int pthread_detach(uintptr_t thread);
uintptr_t pthread_self(void);
int sched_yield(void);
#define EXPORT __attribute__((visibility("default")))

static uintptr_t this_thread(void) { return pthread_self(); }
static void yield_core(void) { sched_yield(); }
typedef void *ThreadResult;
static bool start_thread(ThreadResult (*body)(void *), uintptr_t argument) {
  uintptr_t thread;
  return !pthread_create(&thread, 0, body, (void *)argument) && !pthread_detach(thread);
}

#if defined(__APPLE__)

uint64_t clock_gettime_nsec_np(int clock);
int pthread_atfork(void (*)(void), void (*)(void), void (*)(void));
enum { UPTIME_RAW = 8 };

#if defined(__ENVIRONMENT_IPHONE_OS_VERSION_MIN_REQUIRED__)
// Apps may not use what macOS sleeps on: all wait for one condition, laid out as in <pthread.h>.
typedef struct { long signature; char opaque[56]; } Mutex;
typedef struct { long signature; char opaque[40]; } Condition;
int pthread_mutex_lock(Mutex *);
int pthread_mutex_unlock(Mutex *);
int pthread_cond_wait(Condition *, Mutex *);
int pthread_cond_broadcast(Condition *);
static Mutex sleeping = {0x32AAABA7, {0}};
static Condition changed = {0x3CB0B1BB, {0}};

static void sleep_while(Number *number, uint32_t value) {
  pthread_mutex_lock(&sleeping);
  if (atomic_load(number) == value) pthread_cond_wait(&changed, &sleeping);
  pthread_mutex_unlock(&sleeping);
}
static void wake_sleepers(Number *number) {
  (void)number;
  pthread_mutex_lock(&sleeping);
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&sleeping);
}
#else
int __ulock_wait(uint32_t operation, void *, uint64_t value, uint32_t microseconds);
int __ulock_wake(uint32_t operation, void *, uint64_t);
enum { COMPARE_AND_WAIT = 1, WAKE_ALL = 0x100 };

static void sleep_while(Number *number, uint32_t value) {
  __ulock_wait(COMPARE_AND_WAIT, (void *)number, value, 0);
}
static void wake_sleepers(Number *number) {
  __ulock_wake(COMPARE_AND_WAIT | WAKE_ALL, (void *)number, 0);
}
#endif
static uint64_t nanoseconds(void) { return clock_gettime_nsec_np(UPTIME_RAW); }
static void after_fork(void (*in_child)(void)) { pthread_atfork(0, 0, in_child); }

#else  // Linux, Android

long syscall(long, ...);
int clock_gettime(int clock, int64_t seconds_and_nanoseconds[2]);
int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void *library);
enum { WAIT_PRIVATE = 128, WAKE_PRIVATE = 129, MONOTONIC = 1 };
#if defined(__x86_64__)
enum { FUTEX = 202 };
#elif defined(__aarch64__)
enum { FUTEX = 98 };
#else
#error "the number of the futex call on this processor"
#endif

static void sleep_while(Number *number, uint32_t value) {
  syscall(FUTEX, number, WAIT_PRIVATE, value, (void *)0, (void *)0, 0);
}
static void wake_sleepers(Number *number) {
  syscall(FUTEX, number, WAKE_PRIVATE, INT32_MAX, (void *)0, (void *)0, 0);
}
static uint64_t nanoseconds(void) {
  int64_t time[2];
  clock_gettime(MONOTONIC, time);
  return (uint64_t)(time[0] * 1000000000 + time[1]);
}
static void after_fork(void (*in_child)(void)) { __register_atfork(0, 0, in_child, 0); }

#endif
#endif

static void pause_briefly(void) {  // some ten nanoseconds
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#endif
}
