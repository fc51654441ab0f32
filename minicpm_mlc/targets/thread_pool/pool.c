// The threads that a process's compiled CPU libraries share, in the place of TVM's pool.
//
// A loop is cut into more tasks than threads, which claim them one by one: a slow or busy core
// takes fewer. Loops belong to turns: a caller enters, runs its loops, leaves. Callers get their
// turns in the order they came; who has had one for longer than TURN lets the others go first
// before its next loop. A loop outside of any turn runs on its caller alone.
#include "event.h"

enum {  // nanoseconds
  TURN = 20000000,            // of a turn, while others wait for theirs
  WORKER_PATIENCE = 300000,   // until a worker without a loop sleeps: longer than between tokens
  CALLER_PATIENCE = 10000000, // until a caller sleeps, who waits for tasks that others have
  STRETCH = 1000000,          // of a worker's tasks, until others may have its core
};

typedef struct {  // TVMParallelGroupEnv
  void *sync_handle;
  int32_t num_task;
} Environment;
typedef int (*Body)(int task, Environment *, void *data);  // 0: done, else an error was raised

// of libtvm_ffi: the error that a function of this thread raised
void TVMFFIErrorMoveFromRaised(void **error);
void TVMFFIErrorSetRaised(void *error);
int TVMFFIObjectDecRef(void *error);

static struct {  // the loop that runs; written by the thread that has the turn
  Body body;
  void *data;
  Environment environment;
  _Atomic(void *) error;  // the first that a task raised
  Number failed;
  _Alignas(64) _Atomic uint64_t unclaimed;  // the loop's number << 32 | tasks that nobody took yet
  Event unfinished;                         // tasks that aren't done
  _Atomic uint64_t busy;                    // nanoseconds of all tasks, where they are measured
} loop;
static Event loops;    // the number of the last loop
static Event limit;    // threads that may work on a loop, the caller among them
static Event serving;  // the place in the queue of the caller that has the turn
static Number queued;  // the place of the next caller to come
static _Atomic uintptr_t owner;  // the thread that has the turn
static uint64_t turn_began;      // nanoseconds
static uint32_t tasks_per_thread;
static uint32_t entered;  // how often its owner has entered the turn
static uint32_t workers;  // threads that were started
static bool fork_is_watched;
static _Atomic bool measured;     // what threads wait
static _Atomic uint64_t waited;  // nanoseconds of all threads, since they were asked for

static void run_task(uint32_t task) {
  uint64_t began = atomic_load(&measured) ? nanoseconds() : 0;
  if (loop.body((int)task, &loop.environment, loop.data)) {
    void *error = 0, *none = 0;
    TVMFFIErrorMoveFromRaised(&error);
    if (error && !atomic_compare_exchange_strong(&loop.error, &none, error))
      TVMFFIObjectDecRef(error);
    atomic_store(&loop.failed, 1);
  }
  if (began) atomic_fetch_add(&loop.busy, nanoseconds() - began);
  if (atomic_fetch_sub(&loop.unfinished.number, 1) == 1) wake(&loop.unfinished);
}

// Takes tasks of this loop until all are taken. Who has one may read `loop` until it is done.
//
// A worker now and then lets others have its core, between two tasks: a system that takes it away
// within a task makes all wait.
static void take_tasks(uint32_t number, uint64_t *yielded) {
  uint64_t unclaimed = atomic_load(&loop.unclaimed);
  while (unclaimed >> 32 == number && (uint32_t)unclaimed) {
    if (!atomic_compare_exchange_weak(&loop.unclaimed, &unclaimed, unclaimed - 1)) continue;
    run_task((uint32_t)loop.environment.num_task - (uint32_t)unclaimed);
    if (yielded && nanoseconds() - *yielded > STRETCH) {
      yield_core();
      *yielded = nanoseconds();
    }
    unclaimed = atomic_load(&loop.unclaimed);
  }
}

static ThreadResult work(void *argument) {
  uint32_t index = (uint32_t)(uintptr_t)argument, seen = atomic_load(&loops.number);
  uint64_t yielded = nanoseconds();
  for (;;) {
    uint32_t threads = atomic_load(&limit.number);
    if (index >= threads) {
      wait_while(&limit, threads, 0);
      continue;
    }
    wait_while(&loops, seen, WORKER_PATIENCE);
    seen = atomic_load(&loops.number);
    if (index < atomic_load(&limit.number)) take_tasks(seen, &yielded);
  }
  return 0;
}

static int run_loop(Body body, void *data, uint32_t tasks) {
  uint32_t number = atomic_load(&loops.number) + 1;
  uint64_t began = atomic_load(&measured) ? nanoseconds() : 0;
  atomic_store(&loop.busy, 0);
  loop.body = body;
  loop.data = data;
  loop.environment.num_task = (int32_t)tasks;
  atomic_store(&loop.failed, 0);
  atomic_store(&loop.unfinished.number, tasks);
  atomic_store(&loop.unclaimed, (uint64_t)number << 32 | tasks);
  atomic_store(&loops.number, number);
  wake(&loops);
  take_tasks(number, 0);
  for (uint32_t left; (left = atomic_load(&loop.unfinished.number));)
    wait_while(&loop.unfinished, left, CALLER_PATIENCE);
  if (began) {
    uint64_t whole = (nanoseconds() - began) * atomic_load(&limit.number);
    atomic_fetch_add(&waited, whole - atomic_load(&loop.busy));
  }
  if (!atomic_load(&loop.failed)) return 0;
  void *error = atomic_exchange(&loop.error, 0);
  if (error) {
    TVMFFIErrorSetRaised(error);
    TVMFFIObjectDecRef(error);
  }
  return -1;
}

// The child of a fork has none of the threads: it begins with an empty pool.
static void begin_anew(void) {
  workers = 0;
  atomic_store(&owner, 0);
  atomic_store(&queued, 0);
  for (Event **event = (Event *[]){&loops, &limit, &serving, &loop.unfinished, 0}; *event; event++) {
    atomic_store(&(*event)->number, 0);
    atomic_store(&(*event)->sleepers, 0);
  }
}

static void set_threads(uint32_t threads) {
  if (!fork_is_watched) after_fork(begin_anew);
  fork_is_watched = true;
  while (workers + 1 < threads && start_thread(work, workers + 1)) workers++;
  if (atomic_exchange(&limit.number, threads) != threads) wake(&limit);
}

static bool has_turn(void) { return atomic_load(&owner) == this_thread(); }

static void take_turn(uint32_t threads, uint32_t tasks) {
  uint32_t place = atomic_fetch_add(&queued, 1);
  for (uint32_t now; (now = atomic_load(&serving.number)) != place;)
    wait_while(&serving, now, SPIN);
  atomic_store(&owner, this_thread());
  turn_began = nanoseconds();
  tasks_per_thread = tasks;
  entered = 1;
  set_threads(threads);
}

static void end_turn(void) {
  atomic_store(&owner, 0);
  atomic_fetch_add(&serving.number, 1);
  wake(&serving);
}

// Others have waited for long enough: the caller queues up behind them.
static void let_others_go_first(void) {
  uint32_t threads = atomic_load(&limit.number), tasks = tasks_per_thread, depth = entered;
  end_turn();
  take_turn(threads, tasks);
  entered = depth;
}

// Waits for the caller's turn, and takes it with so many threads and tasks of each per loop; within
// a turn it changes nothing. Returns how many threads there are: fewer where the system gave no
// more.
EXPORT uint32_t minicpm_pool_enter(uint32_t threads, uint32_t tasks) {
  if (has_turn()) {
    entered++;
    return threads;
  }
  take_turn(threads, tasks);
  return workers + 1 < threads ? workers + 1 : threads;
}

// Ends the caller's turn when it has left as often as entered; nothing for who has none, such as
// the child of a fork within one.
EXPORT void minicpm_pool_leave(void) {
  if (has_turn() && --entered == 0) end_turn();
}

// Nanoseconds that threads had no task while a loop ran, of all threads together, since the last
// call. They are measured from a call with `measure` until one without.
EXPORT uint64_t minicpm_pool_waited(bool measure) {
  atomic_store(&measured, measure);
  return atomic_exchange(&waited, 0);
}

// TVMBackendParallelLaunch: runs body for every task; `tasks` 0 leaves their number to the pool.
EXPORT int minicpm_pool_launch(Body body, void *data, int32_t tasks) {
  minicpm_pool_enter(1, 1);
  bool others_wait = atomic_load(&queued) - atomic_load(&serving.number) > 1;
  if (others_wait && nanoseconds() - turn_began > TURN) let_others_go_first();
  uint32_t number = tasks ? (uint32_t)tasks : atomic_load(&limit.number) * tasks_per_thread;
  int status = run_loop(body, data, number);
  minicpm_pool_leave();
  return status;
}

#if defined(__wasm__)
// What a page's worker calls, the first as 1. It doesn't return.
EXPORT void minicpm_pool_work(uint32_t index) { work((void *)(uintptr_t)index); }
#endif
