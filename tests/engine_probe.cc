// The engine's insides for the tests: a line is a question, its parts with tabs between, and a line its answer. In
// WebAssembly the function `answer` is given the lines (engine_probe.mjs). Floats are the hexadecimal digits of their bits.
//   draw OPTIONS PROMPT LOGITS   the ids drawn; JSON, JSON and steps of `vocab` logits each
//   logits FOLDER LINKED IDS     what a model computes after the last of these ids, a list in JSON
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "model.h"
#include "sampler.h"

namespace {

using minicpm::Json;
using Parts = std::vector<std::string>;

std::vector<float> FloatsOf(const std::string& hex) {
  std::vector<float> floats;
  for (size_t at = 0; at + 8 <= hex.size(); at += 8) {
    uint32_t bits = static_cast<uint32_t>(std::strtoul(hex.substr(at, 8).c_str(), nullptr, 16));
    float number;
    std::memcpy(&number, &bits, sizeof number);
    floats.push_back(number);
  }
  return floats;
}

std::string HexOf(const float* floats, size_t count) {
  std::string hex;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, floats + i, sizeof bits);
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[bits >> shift & 15];
  }
  return hex;
}

std::string Draw(const Parts& parts) {
  Json options = Json::Parse(parts.at(1), "options");
  std::vector<float> logits = FloatsOf(parts.at(3));
  int64_t vocab = options.At("vocab").Whole(1, INT32_MAX);
  minicpm::Sampler sampler(minicpm::Sampling::Of(options, {}), vocab, Json::Parse(parts.at(2), "prompt").Ids());
  std::string ids;
  for (size_t at = 0; at < logits.size(); at += static_cast<size_t>(vocab)) {
    int32_t id = sampler.Sample(logits.data() + at);
    sampler.Accept(id);
    ids += std::to_string(id) + " ";
  }
  return ids;
}

std::string Logits(const Parts& parts) {
  minicpm::Bundle bundle = minicpm::Bundle::Open(parts.at(1), false, {});
  bundle.linked = parts.at(2);
  minicpm::Model model(bundle, 1, 1024, minicpm::Gears(bundle.manifest, "auto"));
  const float* logits = model.Prefill(Json::Parse(parts.at(3), "ids").Ids(), false);
  return HexOf(logits, static_cast<size_t>(bundle.manifest.vocab_size));
}

std::string Answer(const std::string& line) {
  Parts parts;
  std::istringstream text(line);
  for (std::string part; std::getline(text, part, '\t');) parts.push_back(part);
  return parts.at(0) == "draw" ? Draw(parts) : Logits(parts);
}

}  // namespace

#if defined(__wasm__)
extern "C" __attribute__((export_name("answer"))) const char* answer(const char* line) {
  static std::string said;
  said = Answer(line);
  return said.c_str();
}
#else
int main() {
  for (std::string line; std::getline(std::cin, line);) std::cout << Answer(line) << std::endl;
}
#endif
