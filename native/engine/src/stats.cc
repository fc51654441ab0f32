#include "stats.h"

#include <sstream>

namespace minicpm {
std::string Stats::ToJson() const {
  std::ostringstream json;
  json << "{\"prompt_tokens\": " << prompt_tokens << ", \"cached_tokens\": " << cached_tokens
       << ", \"prefill_seconds\": " << prefill_seconds << ", \"generated_tokens\": " << generated_tokens
       << ", \"decode_steps\": " << decode_steps << ", \"decode_seconds\": " << decode_seconds
       << ", \"context_used\": " << context_used << ", \"context\": " << context << ", \"attention\": \""
       << (sparse ? "sparse" : "dense") << "\", \"blocks_read\": " << blocks_read << ", \"blocks\": " << blocks
       << ", \"speculation\": " << speculation.ToJson() << ", \"finish_reason\": ";
  if (finish_reason.empty()) {
    json << "null}";
  } else {
    json << '"' << finish_reason << "\"}";
  }
  return json.str();
}

}  // namespace minicpm
