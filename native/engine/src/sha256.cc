#include "sha256.h"

#include <algorithm>
#include <cstring>

namespace minicpm {

Sha256Digest::Sha256Digest() : blocks_(Sha256Instructions()) {
  if (!blocks_) blocks_ = Sha256Portable;
}

Sha256Digest::Sha256Digest(Sha256Blocks blocks) : blocks_(blocks) {}

void Sha256Digest::Add(const char* bytes, size_t size) {
  const auto* at = reinterpret_cast<const uint8_t*>(bytes);
  while (size) {
    size_t filled = size_ % 64, taken = std::min(size, 64 - filled);
    if (taken == 64) {
      taken = size / 64 * 64;
      blocks_(state_.data(), at, size / 64);
    } else {
      std::memcpy(held_.data() + filled, at, taken);
      if (filled + taken == 64) blocks_(state_.data(), held_.data(), 1);
    }
    size_ += taken, at += taken, size -= taken;
  }
}

std::array<uint8_t, 32> Sha256Digest::Bytes() {
  uint64_t bits = size_ * 8;
  Add("\x80", 1);
  while (size_ % 64 != 56) Add("", 1);  // a zero
  char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(bits >> (56 - 8 * i));
  Add(length, 8);
  std::array<uint8_t, 32> bytes;
  for (size_t i = 0; i < 32; ++i) bytes[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return bytes;
}

std::string Sha256Digest::Hex() {
  std::string hex;
  for (uint8_t byte : Bytes()) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

}  // namespace minicpm
