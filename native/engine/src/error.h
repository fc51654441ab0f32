// The one exception inside the engine; src/c_api.cc turns it into a status and a text.
#pragma once

#include <exception>
#include <sstream>
#include <string>

#include "minicpm.h"
#include "text.h"

namespace minicpm {

// Its text is a UTF-8 sentence, whatever bytes of a file are quoted in it.
class Error : public std::exception {
 public:
  Error(minicpm_status status, const std::string& text) : status(status), text_(Sentence(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

  const minicpm_status status;

 private:
  std::string text_;
};

// Throws the parts, one after the other, as one sentence: what was seen, what was expected, what to do.
template <typename... Parts>
[[noreturn]] void Fail(minicpm_status status, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(status, text.str());
}

inline constexpr const char* kRepair = "copy the bundle again or compile it again: minicpm-mlc compile";

}  // namespace minicpm
