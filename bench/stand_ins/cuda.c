// Stand-ins for libcuda.so.1 and libcudart.so.13 that count what is asked of them: to see, without
// a GPU, what a step costs in launches, copies, allocations and waits. Memory is the host's, a
// kernel does nothing, a graph repeats the copies recorded into it. One file makes both libraries.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { INVALID = 1, OUT_OF_MEMORY = 2, HEAD = 4096, MOST_NODES = 65536, NAMES = 8 };
static const size_t TOTAL = 141000000000;

typedef struct { void* to; const void* from; size_t bytes; } Copy;
typedef struct { int copies, launches; Copy copy[]; } Graph;

#ifdef DRIVER
#define COUNTED extern
#else
#define COUNTED
#endif
// launch, copy, malloc, free, sync, graph launch, capture, malloc of host memory
COUNTED long stand_in_counts[NAMES];
COUNTED int stand_in_capturing, stand_in_recorded_launches;

#ifdef DRIVER
int cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, length, "Stand-in");
  return 0;
}
int cuGetErrorName(int error, const char** name) { *name = "stand-in"; return 0; }
int cuGetErrorString(int error, const char** text) { *text = "stand-in"; return 0; }
int cuModuleLoadData(void** module, const void* data) { *module = malloc(1); return 0; }
int cuModuleUnload(void* module) { free(module); return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = strdup(name);
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuLaunchKernelEx(const unsigned* config, void* function, void** arguments, void** extra) {
  if (!config[0] || !config[1] || !config[2]) return INVALID;  // an empty grid
  if (stand_in_capturing) stand_in_recorded_launches++;
  else stand_in_counts[0]++;
  return 0;
}
#else
static size_t used;
static Graph* recorded;
static int last_error;
int stand_in_refuses;  // which malloc from now on is refused, once; 0 for none

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 1: *value = 1024; break;   // threads of a block
    case 8: *value = 49152; break;  // shared memory of a block
    case 10: *value = 32; break;    // warp
    case 16: *value = 132; break;   // multiprocessors
    case 75: *value = 9; break;     // compute capability
    case 76: *value = 0; break;
    default: *value = 1;
  }
  return 0;
}
int cudaEventCreate(void** event) { *event = (void*)1; return 0; }
int cudaEventDestroy(void* event) { return 0; }
int cudaEventElapsedTime(float* ms, void* from, void* to) { *ms = 1; return 0; }
int cudaEventRecord(void* event, void* stream) { return 0; }
int cudaEventSynchronize(void* event) { return 0; }
int cudaMalloc(void** place, size_t bytes) {
  stand_in_counts[2]++;
  int refused = stand_in_refuses && !--stand_in_refuses;
  if (refused || used + bytes > TOTAL) return last_error = OUT_OF_MEMORY;
  char* memory = mmap(0, bytes + HEAD, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return OUT_OF_MEMORY;
  *(size_t*)memory = bytes, used += bytes, *place = memory + HEAD;
  return 0;
}
int cudaFree(void* place) {
  stand_in_counts[3]++;
  if (!place) return 0;
  char* memory = (char*)place - HEAD;
  size_t bytes = *(size_t*)memory;
  used -= bytes, munmap(memory, bytes + HEAD);
  return 0;
}
int cudaMallocHost(void** place, size_t bytes) {
  stand_in_counts[7]++;
  *place = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return *place ? 0 : OUT_OF_MEMORY;
}
int cudaFreeHost(void* place) { free(place); return 0; }
int cudaMemGetInfo(size_t* left, size_t* total) { *left = TOTAL - used, *total = TOTAL; return 0; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaGetDeviceProperties(char* properties, int device) {
  strcpy(properties, "Stand-in");
  return 0;
}
const char* cudaGetErrorName(int error) { return "error"; }
const char* cudaGetErrorString(int error) {
  return error == OUT_OF_MEMORY ? "out of memory" : "refused by the stand-in";
}
int cudaGetLastError(void) { int error = last_error; last_error = 0; return error; }
int cudaPeekAtLastError(void) { return 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void* stream) {
  if (stand_in_capturing) recorded->copy[recorded->copies++] = (Copy){to, from, bytes};
  else stand_in_counts[1]++, memcpy(to, from, bytes);
  return 0;
}
int cudaMemcpyPeerAsync(void* to, int a, const void* from, int b, size_t bytes, void* stream) {
  memcpy(to, from, bytes);
  return 0;
}
int cudaStreamCreate(void** stream) { *stream = (void*)0x77; return 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned flags) { *stream = (void*)0x78; return 0; }
int cudaStreamDestroy(void* stream) { return 0; }
int cudaStreamSynchronize(void* stream) {
  if (stand_in_capturing) return INVALID;
  stand_in_counts[4]++;
  return 0;
}
int cudaStreamWaitEvent(void* stream, void* event, unsigned flags) { return 0; }
int cudaStreamBeginCapture(void* stream, int mode) {
  stand_in_counts[6]++;
  if (!stream || getenv("STAND_IN_REFUSES_GRAPHS")) return INVALID;
  recorded = malloc(sizeof *recorded + MOST_NODES * sizeof(Copy));
  recorded->copies = 0, stand_in_recorded_launches = 0, stand_in_capturing = 1;
  return 0;
}
int cudaStreamEndCapture(void* stream, void** graph) {
  if (!stand_in_capturing) return INVALID;
  recorded->launches = stand_in_recorded_launches, stand_in_capturing = 0, *graph = recorded;
  return 0;
}
int cudaGraphInstantiate(void** made, void* graph, unsigned long long flags) {
  size_t bytes = sizeof(Graph) + ((Graph*)graph)->copies * sizeof(Copy);
  *made = memcpy(malloc(bytes), graph, bytes);
  return 0;
}
int cudaGraphDestroy(void* graph) { free(graph); return 0; }
int cudaGraphExecDestroy(void* graph) { free(graph); return 0; }
int cudaGraphLaunch(void* made, void* stream) {
  Graph* graph = made;
  stand_in_counts[5]++;
  for (int i = 0; i < graph->copies; i++)
    memcpy(graph->copy[i].to, graph->copy[i].from, graph->copy[i].bytes);
  return 0;
}
// launches that a recorded graph holds
int stand_in_graph_launches(void) { return stand_in_recorded_launches; }
#endif
