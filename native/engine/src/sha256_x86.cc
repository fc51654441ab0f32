#include "sha256_block.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

namespace minicpm {
namespace {

__m128i Load(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

// The instructions keep a..h in two registers, f, e, b, a and h, g, d, c from their lowest lane on.
// Group i of four rounds takes the schedule's words 4i to 4i + 3, and leaves words 4i + 16 on in their place.
__attribute__((target("sha,sse4.1"))) void Blocks(uint32_t* state, const uint8_t* bytes, size_t blocks) {
  const __m128i reversed = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);  // words are big-endian
  __m128i badc = _mm_shuffle_epi32(Load(state), 0xb1), hgfe = _mm_shuffle_epi32(Load(state + 4), 0x1b);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
  for (; blocks; --blocks, bytes += 64) {
    __m128i before[2] = {abef, cdgh}, words[4];
    for (int i = 0; i < 4; ++i) words[i] = _mm_shuffle_epi8(Load(bytes + 16 * i), reversed);
    for (int i = 0; i < 16; ++i) {
      __m128i &now = words[i % 4], &last = words[(i + 3) % 4];
      __m128i added = _mm_add_epi32(now, Load(kSha256Rounds + 4 * i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0e));
      if (i >= 12) continue;
      __m128i sevenths = _mm_alignr_epi8(last, words[(i + 2) % 4], 4);
      now = _mm_add_epi32(_mm_sha256msg1_epu32(now, words[(i + 1) % 4]), sevenths);
      now = _mm_sha256msg2_epu32(now, last);
    }
    abef = _mm_add_epi32(abef, before[0]), cdgh = _mm_add_epi32(cdgh, before[1]);
  }
  __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace

Sha256Blocks Sha256Instructions() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1)) return nullptr;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) ? Blocks : nullptr;
}

}  // namespace minicpm
#endif
