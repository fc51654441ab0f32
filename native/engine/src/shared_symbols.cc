#include "shared_symbols.h"

#include <dlfcn.h>

#include "minicpm.h"

namespace minicpm {

void ShareSymbols() {
  if (dlsym(RTLD_DEFAULT, "TVMFFIErrorSetRaisedFromCStrParts")) return;
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&minicpm_version), &self)) dlopen(self.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

}  // namespace minicpm
