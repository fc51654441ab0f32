// What the engine asks of a system and WASI has not: mapped files, libraries that are loaded, and memory whose end is an
// exception.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// What C++ throws is a pointer.
__asm__(".globl __cpp_exception\n.tagtype __cpp_exception i32\n__cpp_exception:\n");

namespace {

constexpr size_t kAlignment = 64;  // of tensors, which lie in mapped files; WASI's own mmap aligns to 8 and fills twice

bool ReadAt(int file, char* bytes, size_t size, off_t offset) {
  while (size > 0) {
    ssize_t n = pread(file, bytes, size, offset);
    if (n <= 0) return false;
    bytes += n;
    size -= static_cast<size_t>(n);
    offset += n;
  }
  return true;
}

}  // namespace

extern "C" {

// A copy of the file, or zeros. The engine is compiled to call it minicpm_mmap, as WASI's own is linked too.
void* mmap(void*, size_t length, int, int flags, int file, off_t offset) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, length)) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  if (flags & MAP_ANONYMOUS) {
    std::memset(memory, 0, length);
  } else if (!ReadAt(file, static_cast<char*>(memory), length, offset)) {
    std::free(memory);
    errno = EIO;
    return MAP_FAILED;
  }
  return memory;
}

int munmap(void* memory, size_t) {
  std::free(memory);
  return 0;
}

void* dlopen(const char*, int) { return nullptr; }
void* dlsym(void*, const char*) { return nullptr; }
int dlclose(void*) { return 0; }
int __cxa_thread_atexit(void (*)(void*), void*, void*) { return 0; }  // the thread ends with the page
char* dlerror(void) { return const_cast<char*>("WebAssembly loads no libraries"); }

}  // extern "C"

// Those of the C++ library end the program where there is no memory.
void* operator new(size_t size) {
  void* memory = std::malloc(size ? size : 1);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void* operator new[](size_t size) { return operator new(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
