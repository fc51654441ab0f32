// From messages to token ids, by what compile found out about the chat template: engine.json.
//
// A turn can't be faked: only the template's text may become control tokens; the same characters inside a message are
// encoded as text.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "json.h"
#include "tokenizer.h"

namespace minicpm {

struct Message {
  std::string role, content;
};

// A conversation ready for the assistant's next turn.
struct Prompt {
  std::vector<int32_t> ids;
  bool thinking;  // the template opened a think block that the model is to fill
};

class ChatRules {
 public:
  // Of engine.json's "chat".
  explicit ChatRules(const Json& json);

  static std::vector<Message> Messages(const Json& json);

  // `think`: nothing leaves it to the template. Fails where the template takes no such conversation.
  Prompt Make(const Tokenizer& tokenizer, const std::vector<Message>& messages, std::optional<bool> think) const;

  bool can_switch_thinking() const { return can_switch_; }
  const std::string& refused() const { return refused_; }  // why nobody can chat; empty where one can

 private:
  struct Piece {
    std::string text;
    bool trusted;  // it may hold control tokens
  };
  using Texts = std::map<std::string, std::string>;

  std::vector<Message> Cleaned(const std::vector<Message>& messages, std::optional<bool> think) const;
  std::optional<bool> Switch(std::vector<Message>* messages, std::optional<bool> think) const;
  bool Opened(std::vector<Message> before, const Message& message, std::optional<bool> think) const;
  std::vector<Piece> Pieces(const std::vector<Message>& messages, std::optional<bool> think) const;
  std::vector<int32_t> Ids(const Tokenizer& tokenizer, const std::vector<Piece>& pieces) const;

  std::string refused_;
  bool can_switch_ = false, takes_markers_ = false, strips_ = false;
  std::vector<int32_t> beginning_;  // BOS, or none
  Texts start_;                     // role -> what is before its message where that is the first
  std::map<std::string, Texts> between_;  // role -> role -> what is between their messages
  std::map<std::string, Texts> end_;      // role -> default, think, no_think -> what is behind the last message
};

}  // namespace minicpm
