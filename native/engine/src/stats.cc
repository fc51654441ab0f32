#include "stats.h"

#include <cstdio>
#include <sstream>

namespace minicpm {
namespace {

double Rate(int64_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

std::string OneDigit(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", number);
  return text;
}

}  // namespace

std::string Stats::ToJson() const {
  std::ostringstream json;
  json << "{\"prompt_tokens\": " << prompt_tokens << ", \"cached_tokens\": " << cached_tokens
       << ", \"prefill_seconds\": " << prefill_seconds << ", \"generated_tokens\": " << generated_tokens
       << ", \"decode_steps\": " << decode_steps << ", \"decode_seconds\": " << decode_seconds
       << ", \"context_used\": " << context_used << ", \"context\": " << context << ", \"attention\": \""
       << (sparse ? "sparse" : "dense") << "\", \"blocks_read\": " << blocks_read << ", \"blocks\": " << blocks
       << ", \"finish_reason\": ";
  if (finish_reason.empty()) {
    json << "null}";
  } else {
    json << '"' << finish_reason << "\"}";
  }
  return json.str();
}

std::string Stats::Line() const {
  std::ostringstream line;
  line << "prompt " << prompt_tokens << " tokens (" << cached_tokens << " cached), "
       << OneDigit(Rate(prompt_tokens - cached_tokens, prefill_seconds)) << " tok/s | answer " << generated_tokens
       << " tokens, " << OneDigit(Rate(decode_steps, decode_seconds)) << " tok/s | context " << context_used << "/"
       << context << ", ";
  if (sparse) {
    line << "sparse: " << blocks_read << " of " << blocks << " blocks read";
  } else {
    line << "dense";
  }
  return line.str();
}

}  // namespace minicpm
