#include "sha256_block.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace minicpm {
namespace {

#if defined(__clang__)
#define MINICPM_SHA2 __attribute__((target("sha2")))
#else
#define MINICPM_SHA2 __attribute__((target("+crypto")))
#endif

// Group i of four rounds takes the schedule's words 4i to 4i + 3, and leaves words 4i + 16 on in their place.
MINICPM_SHA2 void Blocks(uint32_t* state, const uint8_t* bytes, size_t blocks) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (; blocks; --blocks, bytes += 64) {
    uint32x4_t before[2] = {abcd, efgh}, words[4];
    for (int i = 0; i < 4; ++i) words[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(bytes + 16 * i)));
    for (int i = 0; i < 16; ++i) {
      uint32x4_t& now = words[i % 4];
      uint32x4_t added = vaddq_u32(now, vld1q_u32(kSha256Rounds + 4 * i)), old = abcd;
      abcd = vsha256hq_u32(abcd, efgh, added);
      efgh = vsha256h2q_u32(efgh, old, added);
      if (i >= 12) continue;
      now = vsha256su1q_u32(vsha256su0q_u32(now, words[(i + 1) % 4]), words[(i + 2) % 4], words[(i + 3) % 4]);
    }
    abcd = vaddq_u32(abcd, before[0]), efgh = vaddq_u32(efgh, before[1]);
  }
  vst1q_u32(state, abcd), vst1q_u32(state + 4, efgh);
}

}  // namespace

Sha256Blocks Sha256Instructions() {
#if defined(__APPLE__)
  return Blocks;  // all of Apple's 64-bit processors
#elif defined(__linux__)
  constexpr unsigned long kSha2 = 1 << 6;  // HWCAP_SHA2
  return getauxval(AT_HWCAP) & kSha2 ? Blocks : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace minicpm
#elif !defined(__x86_64__)
namespace minicpm {

Sha256Blocks Sha256Instructions() { return nullptr; }

}  // namespace minicpm
#endif
