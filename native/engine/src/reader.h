// From tokens to the text of an answer while they come.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "stops.h"
#include "text.h"
#include "thinking.h"
#include "tokenizer.h"

namespace minicpm {

// Turns token ids into pieces of text that never split a character.
class TextStream {
 public:
  // `after`: the tokens before; a text's first space is dropped if they hold no text.
  TextStream(const Tokenizer& tokenizer, const std::vector<int32_t>& after);
  std::string Feed(int32_t id);
  std::string Finish();
  bool at_border() const { return decoder_.at_border(); }

 private:
  std::string FirstSpace(std::string piece);

  const Tokenizer& tokenizer_;
  Utf8Decoder decoder_;
  bool strip_;
};

// A limit on thinking: counts the tokens of an open think block and closes it in the model's place.
class ThinkBudget {
 public:
  // `limit` nothing: none. `opened`: the prompt ends inside a block.
  ThinkBudget(const Tokenizer& tokenizer, std::optional<int64_t> limit, bool opened);
  // Counts a token and the text it gave. `at_border`: the text so far ends with a whole character.
  void Spend(const std::string& piece, bool at_border);
  // The tokens that come next whatever the model says.
  std::vector<int32_t> Forced();

 private:
  const Tokenizer& tokenizer_;
  std::optional<int64_t> limit_;  // nothing, too, once the block was closed
  int64_t used_ = 0;
  ThinkSplitter splitter_;
  std::string tail_;
  bool due_;
};

// What a reader is to do with an answer.
struct Reading {
  std::vector<std::string> stops;
  bool chat = false;    // the text may begin with a think block
  bool opened = false;  // the prompt ended inside one
  std::optional<int64_t> max_think_tokens;
};

class Reader {
 public:
  Reader(const Tokenizer& tokenizer, const std::vector<int32_t>& prompt, const Reading& reading,
         ThinkSplitter::Sink sink);

  void Feed(int32_t id);
  void Finish();
  std::vector<int32_t> Forced() { return budget_.Forced(); }
  bool stopped() const { return stops_.stopped(); }

 private:
  void Show(const std::string& text);

  TextStream text_;
  AnswerStops stops_;
  ThinkBudget budget_;
  ThinkSplitter::Sink sink_;
  std::optional<ThinkSplitter> splitter_;  // of a chat
};

}  // namespace minicpm
