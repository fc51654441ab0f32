#include "shared_symbols.h"

#include <dlfcn.h>

#include "minicpm.h"

namespace minicpm {

void ShareSymbols() {
  Dl_info self;
  if (!dladdr(reinterpret_cast<void*>(&minicpm_version), &self)) return;  // a static program
  dlopen(self.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);           // null for the program itself, which shows them
}

}  // namespace minicpm
