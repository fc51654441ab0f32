#include "normalizer.h"

#include "nfc.h"
#include "text.h"

namespace minicpm {

Normalizer::Normalizer(const std::optional<Json>& json) {
  if (json) Read(*json);
}

void Normalizer::Read(const Json& step) {
  std::string type = step.At("type").Text();
  if (type == "Sequence") {
    for (const Json& inner : step.At("normalizers").List()) Read(inner);
  } else if (type == "Prepend") {
    steps_.push_back({Kind::kPrepend, "", step.At("prepend").Text()});
  } else if (type == "Replace" && step.At("pattern").Find("String")) {
    steps_.push_back({Kind::kReplace, step.At("pattern").At("String").Text(), step.At("content").Text()});
  } else if (type == "NFC") {
    steps_.push_back({Kind::kNfc, "", ""});
  } else {
    step.Refuse("Sequence, Prepend, NFC or Replace of a text");
  }
}

std::string Normalizer::operator()(const std::string& text) const {
  std::string result = text;
  for (const Step& step : steps_) {
    if (step.kind == Kind::kReplace) result = Replaced(result, step.what, step.with);
    if (step.kind == Kind::kPrepend && !result.empty()) result = step.with + result;
    if (step.kind == Kind::kNfc) result = Nfc(result);
  }
  return result;
}

}  // namespace minicpm
