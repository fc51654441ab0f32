#include "reader.h"

#include <algorithm>

namespace minicpm {
namespace {

constexpr const char* kClosing = "\n</think>\n\n";  // what the engine writes in the model's place
constexpr size_t kTail = 8;                         // characters of </think>

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, const std::vector<int32_t>& after) : tokenizer_(tokenizer) {
  auto has_text = [&](int32_t id) { return !tokenizer.BytesOf(id).empty(); };
  strip_ = tokenizer.strips_first_space() && std::none_of(after.begin(), after.end(), has_text);
}

std::string TextStream::Feed(int32_t id) { return FirstSpace(decoder_.Feed(tokenizer_.BytesOf(id))); }

std::string TextStream::Finish() { return FirstSpace(decoder_.Finish()); }

std::string TextStream::FirstSpace(std::string piece) {
  if (!strip_ || piece.empty()) return piece;
  strip_ = false;
  return piece[0] == ' ' ? piece.substr(1) : piece;
}

ThinkBudget::ThinkBudget(const Tokenizer& tokenizer, std::optional<int64_t> limit, bool opened)
    : tokenizer_(tokenizer),
      limit_(limit),
      splitter_(opened, [](minicpm_piece, const std::string&) {}),
      due_(limit && opened && *limit == 0) {}

void ThinkBudget::Spend(const std::string& piece, bool at_border) {
  if (!limit_) return;
  used_ += splitter_.thinking();
  splitter_.Feed(piece);
  tail_ += piece;
  if (tail_.size() > kTail) tail_.erase(0, tail_.size() - kTail);
  due_ = splitter_.thinking() && used_ >= *limit_ && at_border && !Overlap(tail_, kClose);
}

std::vector<int32_t> ThinkBudget::Forced() {
  if (!due_) return {};
  due_ = false;
  limit_.reset();
  return tokenizer_.EncodeMiddle(kClosing);
}

Reader::Reader(const Tokenizer& tokenizer, const std::vector<int32_t>& prompt, const Reading& reading,
               ThinkSplitter::Sink sink)
    : text_(tokenizer, prompt),
      stops_(StopStrings(reading.stops, tokenizer.hidden()), reading.chat, reading.opened),
      budget_(tokenizer, reading.max_think_tokens, reading.opened),
      sink_(sink) {
  if (reading.chat) splitter_.emplace(reading.opened, std::move(sink));
}

void Reader::Feed(int32_t id) {
  std::string said = text_.Feed(id);
  budget_.Spend(said, text_.at_border());
  Show(stops_.Feed(said + stops_.Mark(id)));
}

void Reader::Finish() {
  if (!stopped()) {
    std::string text = stops_.Feed(text_.Finish());
    Show(stopped() ? text : text + stops_.Finish());
  }
  if (splitter_) splitter_->Finish();
}

void Reader::Show(const std::string& text) {
  if (text.empty()) return;
  if (splitter_) return splitter_->Feed(text);
  sink_(MINICPM_ANSWER, text);
}

}  // namespace minicpm
