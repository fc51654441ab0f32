// Text that ends an answer: cut before the stop string that is complete first, wherever the pieces' borders lie.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "json.h"

namespace minicpm {

class StopStrings {
 public:
  // What the option "stop" says: a text, a list of texts, or nothing. Fails for an empty text.
  static std::vector<std::string> Of(const std::optional<Json>& option);

  // `hidden`: id -> text of the tokens that give no text; a stop string may name them.
  StopStrings(const std::vector<std::string>& stops, const std::map<int32_t, std::string>& hidden);

  // What stands in the text for a token that gives none; empty if no stop string names it.
  std::string Mark(int32_t id) const;
  // The text that can be shown; what may be the start of a stop string is held back.
  std::string Feed(const std::string& piece);
  std::string Finish();  // what was held back
  bool stopped() const { return stopped_; }

 private:
  std::string Unmarked(std::string text) const;

  std::vector<std::string> stops_;  // as given, and with marks
  std::map<int32_t, std::string> marks_;
  std::string held_;
  bool stopped_ = false;
};

// Stop strings of a chat: they look at what follows the think block and the white space after it; nothing of the text is
// lost.
class AnswerStops {
 public:
  // `opened`: the prompt ended inside a block. `chat` false: there are no blocks.
  AnswerStops(StopStrings stops, bool chat, bool opened);

  std::string Mark(int32_t id) const;
  std::string Feed(const std::string& piece);
  std::string Finish();
  bool stopped() const { return stops_.stopped(); }

 private:
  enum class State { kStart, kThinking, kGap, kAnswer };

  std::string Start();
  std::string Think();
  std::string SkipSpace();
  std::string Take(size_t length);

  StopStrings stops_;
  State state_;
  std::string held_;
};

}  // namespace minicpm
