#include "stops.h"

#include <algorithm>
#include <tuple>

#include "text.h"
#include "thinking.h"

namespace minicpm {
namespace {

constexpr uint32_t kFirstMark = 0xFDD0;  // never a character: no text has it
constexpr uint32_t kMarks = 32;

}  // namespace

std::vector<std::string> StopStrings::Of(const std::optional<Json>& option) {
  if (!option) return {};
  std::vector<std::string> stops = option->IsText() ? std::vector<std::string>{option->Text()} : option->Texts();
  for (const std::string& stop : stops) {
    if (stop.empty()) option->Refuse("a text, or a list of texts, none of them empty");
  }
  return stops;
}

StopStrings::StopStrings(const std::vector<std::string>& stops, const std::map<int32_t, std::string>& hidden)
    : stops_(stops) {
  std::vector<std::string> marked = stops;
  for (const auto& [id, name] : hidden) {
    auto named = [&, &name = name](const std::string& stop) { return stop.find(name) != std::string::npos; };
    if (std::none_of(stops.begin(), stops.end(), named)) continue;
    AppendCharacter(kFirstMark + static_cast<uint32_t>(marks_.size()) % kMarks, &marks_[id]);
    for (std::string& stop : marked) stop = Replaced(stop, name, marks_[id]);
  }
  for (size_t i = 0; i < stops.size(); ++i) {
    if (marked[i] != stops[i]) stops_.push_back(marked[i]);
  }
}

std::string StopStrings::Mark(int32_t id) const {
  auto mark = marks_.find(id);
  return mark == marks_.end() ? "" : mark->second;
}

std::string StopStrings::Unmarked(std::string text) const {
  for (const auto& entry : marks_) text = Replaced(text, entry.second, "");
  return text;
}

std::string StopStrings::Feed(const std::string& piece) {
  std::string text = std::move(held_) + piece;
  held_.clear();
  std::optional<std::pair<size_t, size_t>> first;  // end and start of the stop string that is complete first
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    size_t at = text.find(stop);
    if (at != std::string::npos) {
      std::pair<size_t, size_t> hit = {at + stop.size(), at};
      first = first ? std::min(*first, hit) : hit;
    }
    keep = std::max(keep, Overlap(text, stop));
  }
  if (first) {
    stopped_ = true;
    return Unmarked(text.substr(0, first->second));
  }
  held_ = text.substr(text.size() - keep);
  return Unmarked(text.substr(0, text.size() - keep));
}

std::string StopStrings::Finish() {
  std::string held = Unmarked(std::move(held_));
  held_.clear();
  return held;
}

AnswerStops::AnswerStops(StopStrings stops, bool chat, bool opened)
    : stops_(std::move(stops)), state_(!chat ? State::kAnswer : opened ? State::kThinking : State::kStart) {}

std::string AnswerStops::Mark(int32_t id) const { return state_ == State::kThinking ? "" : stops_.Mark(id); }

std::string AnswerStops::Feed(const std::string& piece) {
  held_ += piece;
  std::string shown;
  if (state_ == State::kStart) shown = Start();
  if (state_ == State::kThinking) shown += Think();
  if (state_ == State::kGap) shown += SkipSpace();
  if (state_ == State::kAnswer) shown += stops_.Feed(Take(held_.size()));
  return shown;
}

std::string AnswerStops::Finish() {
  if (state_ == State::kStart) {
    std::string shown = stops_.Feed(Take(held_.size()));
    return shown + stops_.Finish();
  }
  std::string shown = Take(held_.size());
  return shown + stops_.Finish();
}

std::string AnswerStops::Start() {
  std::string_view body = StripLeft(held_);
  if (StartsWith(body, kOpen)) {
    state_ = State::kThinking;
    return Take(held_.size() - body.size() + std::string_view(kOpen).size());
  }
  if (!StartsWith(kOpen, body)) state_ = State::kAnswer;
  return "";
}

std::string AnswerStops::Think() {
  size_t close = held_.find(kClose);
  if (close == std::string::npos) return Take(held_.size() - Overlap(held_, kClose));
  state_ = State::kGap;
  return Take(close + std::string_view(kClose).size());
}

std::string AnswerStops::SkipSpace() {
  std::string space = Take(held_.size() - StripLeft(held_).size());
  if (!held_.empty()) state_ = State::kAnswer;
  return space;
}

std::string AnswerStops::Take(size_t length) {
  std::string taken = held_.substr(0, length);
  held_.erase(0, length);
  return taken;
}

}  // namespace minicpm
