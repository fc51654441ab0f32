// Calls a compiled library on Windows as the Python runtime does: what calls.bin says goes into
// model.dll, what comes out into results.bin. tests/test_windows_run.py builds it, and says what
// the files hold. It needs no C library, whose start zig would compile first, for a minute.
#include <stdbool.h>
#include <tvm/ffi/c_api.h>
#include <windows.h>

enum { ALIGNMENT = 64, DEVICE = kDLCPU, POOLED = 2, THREADS = 2, TASKS = 16, MOST = 1024 };

static char *calls;  // the place that is read next; every tensor's values are aligned in the file
static HANDLE results;

static void say(const char *text) {
  DWORD written;
  WriteFile(GetStdHandle(STD_ERROR_HANDLE), text, (DWORD)lstrlenA(text), &written, 0);
}

static void fail(const char *what) {
  TVMFFIObjectHandle error = 0;
  TVMFFIErrorMoveFromRaised(&error);
  say(what);
  if (error) {
    say(": ");
    say(((TVMFFIErrorCell *)((TVMFFIObject *)error + 1))->message.data);
  }
  ExitProcess(1);
}

static void *memory(SIZE_T bytes) {
  void *made = HeapAlloc(GetProcessHeap(), HEAP_ZERO_MEMORY, bytes);
  if (!made) fail("no memory");
  return made;
}

static uint64_t number(void) {
  uint64_t value = *(uint64_t *)calls;
  calls += sizeof value;
  return value;
}

static void put(const void *from, uint64_t bytes) {
  DWORD written;
  if (!WriteFile(results, from, (DWORD)bytes, &written, 0) || written != bytes)
    fail("the results can't be written");
}

static TVMFFIAny object(TVMFFIObjectHandle handle) {
  TVMFFIAny any = {.type_index = ((TVMFFIObject *)handle)->type_index};
  any.v_obj = handle;
  return any;
}

static TVMFFIAny integer(int64_t value) {
  TVMFFIAny any = {.type_index = kTVMFFIInt};
  any.v_int64 = value;
  return any;
}

static TVMFFIAny word(const char *characters) {
  TVMFFIAny any = {.type_index = kTVMFFIRawStr};
  any.v_c_str = characters;
  return any;
}

static TVMFFIAny call(const char *what, TVMFFIAny function, TVMFFIAny *arguments, uint64_t count) {
  TVMFFIAny result = {0};
  if (TVMFFIFunctionCall(function.v_obj, arguments, (int32_t)count, &result)) fail(what);
  return result;
}

static TVMFFIAny global(const char *name) {
  TVMFFIByteArray bytes = {name, (size_t)lstrlenA(name)};
  TVMFFIObjectHandle function = 0;
  if (TVMFFIFunctionGetGlobal(&bytes, &function) || !function) fail(name);
  return object(function);
}

static TVMFFIAny function_of(TVMFFIAny module, const char *name) {
  TVMFFIAny arguments[] = {module, word(name), integer(1)};
  arguments[2].type_index = kTVMFFIBool;
  TVMFFIAny found = call(name, global("ffi.ModuleGetFunction"), arguments, 3);
  if (found.type_index != kTVMFFIFunction) fail(name);
  return found;
}

static uint64_t bytes_of(const DLTensor *tensor) {
  uint64_t bytes = tensor->dtype.bits / 8;
  for (int i = 0; i < tensor->ndim; i++) bytes *= (uint64_t)tensor->shape[i];
  return bytes;
}

static void keep(DLManagedTensor *self) { (void)self; }

// A tensor in calls.bin: code, bits, dimensions, shape, the address of its values.
static TVMFFIAny read_tensor(char *file) {
  DLManagedTensor *managed = memory(sizeof *managed);
  DLTensor *tensor = &managed->dl_tensor;
  tensor->device.device_type = DEVICE;
  tensor->dtype.code = (uint8_t)number();
  tensor->dtype.bits = (uint8_t)number();
  tensor->dtype.lanes = 1;
  tensor->ndim = (int32_t)number();
  tensor->shape = (int64_t *)calls;
  calls += (uint64_t)tensor->ndim * sizeof(int64_t);
  tensor->strides = memory(((uint64_t)tensor->ndim + 1) * sizeof(int64_t));
  int64_t stride = 1;
  for (int i = tensor->ndim - 1; i >= 0; stride *= tensor->shape[i--]) tensor->strides[i] = stride;
  tensor->data = file + number();
  managed->deleter = keep;
  TVMFFIObjectHandle made = 0;
  if (TVMFFITensorFromDLPack(managed, ALIGNMENT, 1, &made)) fail("a tensor");
  return object(made);
}

static TVMFFIAny read_list(char *file) {
  uint64_t count = number();
  TVMFFIAny *items = memory(count * sizeof *items);
  for (uint64_t i = 0; i < count; i++) items[i] = read_tensor(file);
  return call("a list", global("ffi.Array"), items, count);
}

static void write_tensor(const TVMFFIAny *tensor) {
  if (tensor->type_index != kTVMFFITensor) fail("a result is no tensor");
  DLTensor *held = (DLTensor *)(tensor->v_obj + 1);
  uint64_t bytes = bytes_of(held);
  put(&bytes, sizeof bytes);
  put((char *)held->data + held->byte_offset, bytes);
}

static void write_all(TVMFFIAny result) {
  bool one = result.type_index == kTVMFFITensor;
  TVMFFISeqCell *cell = (TVMFFISeqCell *)(result.v_obj + 1);
  uint64_t count = one ? 1 : (uint64_t)cell->size;
  put(&count, sizeof count);
  for (uint64_t i = 0; i < count; i++) write_tensor(one ? &result : (TVMFFIAny *)cell->data + i);
}

static char *whole_file(const char *name) {
  HANDLE file = CreateFileA(name, GENERIC_READ, FILE_SHARE_READ, 0, OPEN_EXISTING, 0, 0);
  DWORD bytes = file == INVALID_HANDLE_VALUE ? 0 : GetFileSize(file, 0), done = 0;
  char *read = bytes ? VirtualAlloc(0, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) : 0;
  if (!read || !ReadFile(file, read, bytes, &done, 0) || done != bytes) fail(name);
  return read;
}

// The loops run on the library's own pool, as on other systems.
static void use_pool(void) {
  HMODULE library = GetModuleHandleA("model.dll");
  void **launch = (void **)GetProcAddress(library, "__TVMBackendParallelLaunch");
  uint32_t (*enter)(uint32_t, uint32_t) = (void *)GetProcAddress(library, "minicpm_pool_enter");
  if (!launch || !enter) fail("the library has no thread pool");
  *launch = (void *)GetProcAddress(library, "minicpm_pool_launch");
  if (enter(THREADS, TASKS) != THREADS) fail("the system started too few threads");
}

static TVMFFIAny opened_library(void) {
  TVMFFIAny path = word("model.dll"), where[] = {integer(DEVICE), integer(0), integer(POOLED)};
  if (!LoadLibraryA("tvm_runtime.dll")) fail("tvm_runtime.dll can't be loaded");
  TVMFFIAny module = call("loading", global("ffi.ModuleLoadFromFile"), &path, 1);
  TVMFFIAny vm = call("the machine", function_of(module, "vm_load_executable"), 0, 0);
  call("the machine's start", function_of(vm, "vm_initialization"), where, 3);
  use_pool();
  return vm;
}

void start(void) {
  static TVMFFIAny arguments[MOST];
  char *file = calls = whole_file("calls.bin");
  results = CreateFileA("results.bin", GENERIC_WRITE, 0, 0, CREATE_ALWAYS, 0, 0);
  TVMFFIAny vm = opened_library(), pools = read_list(file), params = read_list(file);
  for (uint64_t left = number(); left; left--) {
    const char *name = file + number();
    uint64_t rows = number(), takes_params = number();
    if (rows > MOST - 2) fail("too many rows");
    for (uint64_t i = 0; i < rows; i++) arguments[i] = read_tensor(file);
    arguments[rows++] = pools;
    if (takes_params) arguments[rows++] = params;
    write_all(call(name, function_of(vm, name), arguments, rows));
  }
  write_all(pools);
  CloseHandle(results);
  ExitProcess(0);
}
