// The compression function of SHA-256 (FIPS 180-4, section 6.2.2), over whole blocks of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minicpm {

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
extern const uint32_t kSha256Rounds[64];

using Sha256Blocks = void (*)(uint32_t* state, const uint8_t* bytes, size_t blocks);

void Sha256Portable(uint32_t* state, const uint8_t* bytes, size_t blocks);

// By the processor's own instructions, five times as fast; null where it has none.
Sha256Blocks Sha256Instructions();

}  // namespace minicpm
