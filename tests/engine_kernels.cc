// What the kernels of a bundle are off by, as the check of a device tells: of each operator its name, NMSE and limit.
#include <iostream>

#include "device_check.h"

int main(int, char** texts) {
  minicpm::Bundle bundle = minicpm::Bundle::Open(texts[1], false, {});
  minicpm::Library library(bundle, 1);
  minicpm::KernelCases cases(bundle);
  for (const minicpm::KernelCase* each : cases.Smallest(4 << 20)) {
    std::cout << each->name << ' ' << minicpm::Tried(*each, library) << ' ' << each->limit << '\n';
  }
}
