// The compiled library is a part of the module.
#include "shared_symbols.h"

namespace minicpm {

void ShareSymbols() {}

}  // namespace minicpm
