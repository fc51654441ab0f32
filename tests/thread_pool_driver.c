// What the pool must hold, without TVM: threads that call at once, failing tasks, forks.
// Built with the pool under ThreadSanitizer by tests/test_thread_pool.py; prints what went wrong.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
  void *sync_handle;
  int32_t num_task;
} Environment;
uint32_t minicpm_pool_enter(uint32_t threads, uint32_t tasks);
void minicpm_pool_leave(void);
uint64_t minicpm_pool_waited(_Bool measure);
int minicpm_pool_launch(int (*)(int, Environment *, void *), void *, int32_t tasks);

// libtvm_ffi's, where an error is a number that belongs to one thread
static _Thread_local intptr_t raised;
void TVMFFIErrorMoveFromRaised(void **error) {
  *error = (void *)raised;
  raised = 0;
}
void TVMFFIErrorSetRaised(void *error) { raised = (intptr_t)error; }
int TVMFFIObjectDecRef(void *error) { return error == 0; }

#define CHECK(holds) \
  if (!(holds)) { printf("line %d: " #holds "\n", __LINE__); exit(1); }
enum { MOST = 4096, CALLERS = 8, LOOPS = 400 };

typedef struct {
  int done[MOST];  // how often each task ran: plain numbers, so that a race is seen
  int tasks, failing;
} Work;

static int count(int task, Environment *environment, void *data) {
  Work *work = data;
  work->tasks = environment->num_task > work->tasks ? environment->num_task : work->tasks;
  work->done[task]++;
  if (task != work->failing) return 0;
  raised = 40 + task;
  return -1;
}

static int count_only(int task, Environment *environment, void *data) {
  (void)environment;
  Work *work = data;
  work->done[task]++;
  if (task != work->failing) return 0;
  raised = 40 + task;
  return -1;
}

static void run(Work *work, int tasks, int32_t asked) {
  for (int i = 0; i < tasks; i++) work->done[i] = 0;
  raised = 0;
  int status = minicpm_pool_launch(count_only, work, asked);
  for (int i = 0; i < tasks; i++) CHECK(work->done[i] == 1);
  CHECK(status == (work->failing < tasks ? -1 : 0));
  CHECK(raised == (work->failing < tasks ? 40 + work->failing : 0));
}

static void *caller(void *argument) {
  int index = (int)(intptr_t)argument, threads = 1 + index % 3, share = 1 + index;
  Work *work = calloc(1, sizeof *work);
  work->failing = index % 2 ? 0 : MOST;
  for (int turn = 0; turn < LOOPS / 20; turn++) {
    CHECK((int)minicpm_pool_enter(threads, share) == threads);
    for (int i = 0; i < 20; i++) run(work, threads * share, 0);
    run(work, 7, 7);
    CHECK((int)minicpm_pool_enter(5, 1) == 5);  // within the turn
    run(work, threads * share, 0);
    minicpm_pool_leave();
    run(work, threads * share, 0);
    minicpm_pool_leave();
    work->failing = MOST;
    run(work, 3, 3);  // outside of any turn
    work->failing = index % 2 ? 0 : MOST;
  }
  free(work);
  return 0;
}

static void callers(int number) {
  pthread_t threads[CALLERS];
  for (intptr_t i = 0; i < number; i++) pthread_create(&threads[i], 0, caller, (void *)i);
  for (int i = 0; i < number; i++) pthread_join(threads[i], 0);
}

static int sleep_first(int task, Environment *environment, void *data) {
  (void)environment, (void)data;
  if (task == 0) usleep(20000);
  return 0;
}

// One of three threads has all the work: the other two wait.
static void waits_are_measured(void) {
  minicpm_pool_enter(3, 1);
  CHECK(minicpm_pool_waited(1) == 0);
  CHECK(minicpm_pool_launch(sleep_first, 0, 0) == 0);
  CHECK(minicpm_pool_waited(0) >= 39000000);
  CHECK(minicpm_pool_launch(sleep_first, 0, 0) == 0);
  CHECK(minicpm_pool_waited(0) == 0);
  minicpm_pool_leave();
}

static _Atomic int waiting, others_done;

static void *short_turn(void *unused) {
  waiting = 1;
  caller((void *)1);
  others_done = 1;
  return unused;
}

// Who has its turn for long lets another go first, and still has it then.
static void long_turn(Work *work) {
  pthread_t other;
  minicpm_pool_enter(2, 3);
  minicpm_pool_enter(2, 3);
  pthread_create(&other, 0, short_turn, 0);
  alarm(60);
  while (!waiting || !others_done) run(work, 6, 0);
  minicpm_pool_leave();
  run(work, 6, 0);
  minicpm_pool_leave();
  pthread_join(other, 0);
  alarm(0);
}

static void *fork_now(void *unused) {
  for (int i = 0; i < 20; i++) {
    pid_t child = fork();
    if (!child) {
      alarm(20);
      caller((void *)1);
      _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
  return unused;
}

int main(int argc, char **argv) {
  Work *work = calloc(1, sizeof *work);
  work->failing = MOST;
  minicpm_pool_enter(1, 5);  // on one thread, tasks run in their order
  CHECK(minicpm_pool_launch(count, work, 0) == 0 && work->tasks == 5);
  minicpm_pool_leave();
  minicpm_pool_leave();  // of no turn
  waits_are_measured();
  callers(CALLERS);
  long_turn(work);
  if (argc > 1 && argv[1][0] == 'f') {  // forks while others compute
    pthread_t forker;
    pthread_create(&forker, 0, fork_now, 0);
    for (int i = 0; i < 10; i++) callers(2);
    pthread_join(forker, 0);
  }
  for (int i = 0; i < 100; i++) {  // callers that come and go
    pthread_t thread;
    pthread_create(&thread, 0, caller, (void *)(intptr_t)(i % CALLERS));
    pthread_join(thread, 0);
  }
  puts("held");
  free(work);
}
