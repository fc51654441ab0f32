// What becomes of a text before it is cut into tokens: tokenizer.json's normalizer.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "json.h"

namespace minicpm {

class Normalizer {
 public:
  // Fails for a kind that this engine doesn't know.
  explicit Normalizer(const std::optional<Json>& json);
  std::string operator()(const std::string& text) const;

 private:
  enum class Kind { kPrepend, kReplace, kNfc };
  struct Step {
    Kind kind;
    std::string what, with;
  };
  void Read(const Json& step);

  std::vector<Step> steps_;
};

}  // namespace minicpm
