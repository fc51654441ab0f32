// A compiled library finds TVM's functions in the process that loads it.
#pragma once

namespace minicpm {

// Shows this library's symbols to those that are loaded later, where a program loaded it for itself alone, as a JVM does.
void ShareSymbols();

}  // namespace minicpm
