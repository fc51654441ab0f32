// The machine that this process runs on.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "manifest.h"

namespace minicpm {

// Why a bundle's library can't run here; empty if it can.
std::string Mismatch(const Manifest& manifest);

// Cores that this process may run on; hyper-threads of one core count once.
int PhysicalCores();

// Processors that this process may run on.
int Processors();

// Bytes that can be taken without swapping, within the limits of this process's control group.
uint64_t AvailableMemory();

}  // namespace minicpm
