// A model's answer, cut into its thinking and the answer proper: minicpm_mlc/prompt/thinking.py says the rules.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "minicpm.h"

namespace minicpm {

inline constexpr const char* kOpen = "<think>";
inline constexpr const char* kClose = "</think>";

// Whether a prompt ends inside a block that the chat template opened.
bool OpensThinking(std::string_view prompt);

// The answer of a whole past message: a think block at its beginning is left out; `opened`: the template had opened it.
std::string WithoutThinking(const std::string& text, bool opened);

// An answer as the content of a past message: behind an empty think block where its own markers would be read as
// thinking.
std::string AsHistory(const std::string& answer);

// Takes pieces of text in any sizes and gives them on by kind, without the markers and the white space beside them.
class ThinkSplitter {
 public:
  using Sink = std::function<void(minicpm_piece kind, const std::string& text)>;

  // `opened`: the prompt ended inside a block.
  ThinkSplitter(bool opened, Sink sink) : sink_(std::move(sink)), state_(opened ? State::kThinking : State::kStart) {}

  void Feed(const std::string& text);
  void Finish();
  bool thinking() const { return state_ == State::kThinking; }

 private:
  enum class State { kStart, kThinking, kAnswer };

  void Start();
  void Think();
  void Answer();

  Sink sink_;
  State state_;
  std::string held_;     // may still turn out to be white space or a marker to drop
  bool fresh_ = true;    // nothing of the current kind was given
  bool closed_ = false;  // a block has ended: white space before the answer is dropped
};

}  // namespace minicpm
