#include "thinking.h"

#include <algorithm>

#include "text.h"

namespace minicpm {
namespace {

// Length of what is certainly thought: not a beginning of the closing marker, nor white space that may precede it.
size_t SafeLength(std::string_view text) {
  size_t overlap = Overlap(text, kClose);
  return StripRight(text.substr(0, text.size() - overlap)).size();
}

}  // namespace

bool OpensThinking(std::string_view prompt) { return EndsWith(StripRight(prompt), kOpen); }

std::string WithoutThinking(const std::string& text, bool opened) {
  size_t close = text.find(kClose);
  std::string answer = close == std::string::npos ? "" : std::string(StripLeft(text.substr(close + 8)));
  if (StartsWith(StripLeft(text), kOpen)) return answer;
  bool closes_only = opened && close != std::string::npos && text.find(kOpen) >= close;
  return closes_only ? answer : text;
}

std::string AsHistory(const std::string& answer) {
  bool tagged = answer.find(kOpen) != std::string::npos || answer.find(kClose) != std::string::npos;
  return tagged ? std::string(kOpen) + "\n\n" + kClose + "\n\n" + answer : answer;
}

void ThinkSplitter::Feed(const std::string& text) {
  held_ += text;
  if (state_ == State::kStart) Start();
  if (state_ == State::kThinking) Think();
  if (state_ == State::kAnswer) Answer();
}

void ThinkSplitter::Finish() {
  std::string held = std::move(held_);
  held_.clear();
  bool strip_left = fresh_ && (state_ == State::kThinking || closed_);
  std::string_view text = strip_left ? StripLeft(held) : std::string_view(held);
  if (state_ == State::kThinking) text = StripRight(text);
  if (!text.empty()) sink_(thinking() ? MINICPM_THINKING : MINICPM_ANSWER, std::string(text));
}

void ThinkSplitter::Start() {
  std::string_view body = StripLeft(held_);
  if (StartsWith(body, kOpen)) {
    held_ = std::string(body.substr(std::string_view(kOpen).size()));
    state_ = State::kThinking;
  } else if (!StartsWith(kOpen, body)) {
    state_ = State::kAnswer;
  }
}

void ThinkSplitter::Think() {
  if (fresh_) held_ = std::string(StripLeft(held_));
  size_t close = held_.find(kClose);
  bool ends = close != std::string::npos;
  std::string keep = ends ? std::string(StripRight(std::string_view(held_).substr(0, close)))
                          : held_.substr(0, SafeLength(held_));
  if (!keep.empty()) {
    sink_(MINICPM_THINKING, keep);
    fresh_ = false;
  }
  if (!ends) {
    held_ = held_.substr(keep.size());
    return;
  }
  held_ = held_.substr(close + std::string_view(kClose).size());
  state_ = State::kAnswer;
  fresh_ = closed_ = true;
}

void ThinkSplitter::Answer() {
  if (closed_ && fresh_) held_ = std::string(StripLeft(held_));
  if (held_.empty()) return;
  sink_(MINICPM_ANSWER, held_);
  held_.clear();
  fresh_ = false;
}

}  // namespace minicpm
