// SHA-256 of the input, twice: portably, and by the processor's instructions ("none" without them).
#include <iostream>
#include <iterator>
#include <string>

#include "sha256.h"

namespace {

std::string Digest(minicpm::Sha256Blocks blocks, const std::string& bytes) {
  minicpm::Sha256Digest digest(blocks);
  size_t first = bytes.size() / 3;  // two pieces, of which the second begins within a block
  digest.Add(bytes.data(), first);
  digest.Add(bytes.data() + first, bytes.size() - first);
  return digest.Hex();
}

}  // namespace

int main() {
  std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
  auto instructions = minicpm::Sha256Instructions();
  std::cout << Digest(minicpm::Sha256Portable, bytes) << ' '
            << (instructions ? Digest(instructions, bytes) : "none") << '\n';
}
