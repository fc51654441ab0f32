#include "random.h"

#include <array>
#include <random>

namespace minicpm {
namespace {

using Wide = unsigned __int128;
constexpr Wide kMultiplier = Wide{0x2360ED051FC65DA4} << 64 | 0x4385DF649FCCF645;

// SeedSequence of numpy/random/bit_generator.pyx, by M. E. O'Neill's design, of a seed below 2^64.
class SeedSequence {
 public:
  explicit SeedSequence(uint64_t seed) {
    uint32_t words[4] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0, 0};
    for (int i = 0; i < 4; ++i) pool_[i] = Hashed(words[i]);
    for (int from = 0; from < 4; ++from) {
      for (int to = 0; to < 4; ++to) {
        if (from != to) pool_[to] = Mixed(pool_[to], Hashed(pool_[from]));
      }
    }
  }

  std::array<uint64_t, 4> State() const {
    std::array<uint64_t, 4> state{};
    uint32_t constant = 0x8b51f9dd;
    for (int i = 0; i < 8; ++i) {
      uint32_t value = pool_[i % 4] ^ constant;
      constant *= 0x58f38ded;
      value *= constant;
      state[i / 2] |= uint64_t{value ^ value >> 16} << (i % 2 * 32);
    }
    return state;
  }

 private:
  uint32_t Hashed(uint32_t value) {
    value ^= constant_;
    constant_ *= 0x931e8875;
    value *= constant_;
    return value ^ value >> 16;
  }
  static uint32_t Mixed(uint32_t x, uint32_t y) {
    uint32_t result = 0xca01f9dd * x - 0x4973f715 * y;
    return result ^ result >> 16;
  }

  uint32_t constant_ = 0x43b0d7e5;
  uint32_t pool_[4];
};

uint64_t Fresh() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace

Random::Random(std::optional<uint64_t> seed) {
  std::array<uint64_t, 4> words = SeedSequence(seed ? *seed : Fresh()).State();
  increment_ = (Wide{words[2]} << 64 | words[3]) << 1 | 1;
  state_ = increment_ + (Wide{words[0]} << 64 | words[1]);
  state_ = state_ * kMultiplier + increment_;
}

double Random::Next() {
  state_ = state_ * kMultiplier + increment_;
  uint64_t folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
  int turn = static_cast<int>(state_ >> 122);
  uint64_t number = folded >> turn | folded << (-turn & 63);
  return static_cast<double>(number >> 11) * (1.0 / 9007199254740992.0);
}

}  // namespace minicpm
