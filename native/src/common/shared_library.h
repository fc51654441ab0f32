// A driver's library, opened at run time and never closed.
#pragma once

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace minicpm {

// nullptr where there is none of that name.
inline void* OpenLibrary(const char* name) {
#ifdef _WIN32
  return reinterpret_cast<void*>(LoadLibraryA(name));
#else
  return dlopen(name, RTLD_NOW | RTLD_LOCAL);
#endif
}

// nullptr where the library has none of that name.
template <typename Function>
Function FindSymbol(void* library, const char* name) {
#ifdef _WIN32
  return reinterpret_cast<Function>(GetProcAddress(static_cast<HMODULE>(library), name));
#else
  return reinterpret_cast<Function>(dlsym(library, name));
#endif
}

}  // namespace minicpm
