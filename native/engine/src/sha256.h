// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "sha256_block.h"

namespace minicpm {

class Sha256Digest {
 public:
  Sha256Digest();
  explicit Sha256Digest(Sha256Blocks blocks);
  void Add(const char* bytes, size_t size);
  // Of all that was added; nothing can be added any more.
  std::array<uint8_t, 32> Bytes();
  std::string Hex();

 private:
  Sha256Blocks blocks_;
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> held_{};
  uint64_t size_ = 0;
};

}  // namespace minicpm
