#include "prompt.h"

#include <algorithm>

#include "text.h"
#include "thinking.h"

namespace minicpm {
namespace {

constexpr const char* kRoles[] = {"system", "user", "assistant", "tool"};

std::map<std::string, std::string> TextsOf(const Json& json) {
  std::map<std::string, std::string> texts;
  for (const std::string& key : json.Keys()) texts[key] = json.At(key).Text();
  return texts;
}

// What a text that ends in /think or /no_think says, and where its marker begins, with the white space before it; nothing
// for any other.
struct Marker {
  bool think;
  size_t begin;
};
std::optional<Marker> MarkerOf(const std::string& content) {
  std::string_view text = StripRight(content);
  for (const char* marker : {"/no_think", "/think"}) {
    if (!EndsWith(text, marker)) continue;
    std::string_view before = text.substr(0, text.size() - std::string_view(marker).size());
    if (before.empty()) return Marker{marker[1] == 't', 0};
    std::string_view shorter = StripRight(before);
    if (shorter.size() == before.size()) return std::nullopt;
    size_t begin = shorter.size();  // of the white space; the marker takes one character of it
    for (size_t at = begin; at < before.size(); at += CharacterAt(before, at).bytes) begin = at;
    return Marker{marker[1] == 't', begin};
  }
  return std::nullopt;
}

// A text cut at the control tokens in it, of those at one place the longest.
std::vector<Part> CutAt(const std::map<std::string, int32_t>& tokens, std::string_view text) {
  std::vector<Part> parts;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const std::pair<const std::string, int32_t>* longest = nullptr;
    for (const auto& token : tokens) {
      bool fits = StartsWith(text.substr(at), token.first);
      if (fits && (!longest || token.first.size() > longest->first.size())) longest = &token;
    }
    if (!longest) {
      ++at;
      continue;
    }
    if (begin < at) parts.push_back({-1, text.substr(begin, at - begin)});
    parts.push_back({longest->second, text.substr(at, longest->first.size())});
    begin = at += longest->first.size();
  }
  if (begin < text.size()) parts.push_back({-1, text.substr(begin)});
  return parts;
}

std::string NameOf(std::optional<bool> think) { return !think ? "default" : *think ? "think" : "no_think"; }

}  // namespace

ChatRules::ChatRules(const Json& json) {
  if (std::optional<Json> refused = json.Find("refused")) {
    refused_ = refused->Text();
    return;
  }
  can_switch_ = json.At("can_switch_thinking").Bool();
  takes_markers_ = json.At("takes_markers").Bool();
  strips_ = json.At("strips").Bool();
  beginning_ = json.At("beginning").Ids();
  start_ = TextsOf(json.At("start"));
  for (auto [name, to] : {std::pair{"between", &between_}, std::pair{"end", &end_}}) {
    Json table = json.At(name);
    for (const std::string& role : table.Keys()) (*to)[role] = TextsOf(table.At(role));
  }
}

std::vector<Message> ChatRules::Messages(const Json& json) {
  std::vector<Message> messages;
  for (const Json& item : json.List()) {
    if (!item.IsObject() || item.Keys().size() != 2) item.Refuse("an object with exactly role and content");
    Message message{item.At("role").Text(), WholeCharacters(item.At("content").Text())};
    if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
      item.At("role").Refuse("system, user, assistant or tool");
    }
    messages.push_back(message);
  }
  if (messages.empty()) json.Refuse("at least one message: {\"role\": \"user\", \"content\": ...}");
  return messages;
}

Prompt ChatRules::Make(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                       std::optional<bool> think) const {
  if (!refused_.empty()) Fail(MINICPM_REQUEST, refused_, "; use generate");
  if (think && !can_switch_) {
    Fail(MINICPM_REQUEST, "the chat template has no thinking switch (enable_thinking): leave out think");
  }
  std::vector<Message> clean = Cleaned(messages, think);
  std::optional<bool> switched = Switch(&clean, think);
  std::vector<Piece> pieces = Pieces(clean, switched);
  std::vector<int32_t> ids = Ids(tokenizer, pieces);
  bool begins = ids.size() >= beginning_.size() && std::equal(beginning_.begin(), beginning_.end(), ids.begin());
  if (!begins) ids.insert(ids.begin(), beginning_.begin(), beginning_.end());
  std::string text;
  for (const Piece& piece : pieces) text += piece.text;
  return {ids, OpensThinking(text)};
}

// Without the thinking of past answers.
std::vector<Message> ChatRules::Cleaned(const std::vector<Message>& messages, std::optional<bool> think) const {
  std::vector<Message> clean;
  for (const Message& message : messages) {
    Message cleaned = message;
    if (message.role == "assistant") {
      cleaned.content = WithoutThinking(message.content, false);
      if (Opened(clean, message, think)) cleaned.content = WithoutThinking(cleaned.content, true);
    }
    clean.push_back(cleaned);
  }
  return clean;
}

// Whether the message ends a think block that the template had opened for it: it begins with none of its own.
bool ChatRules::Opened(std::vector<Message> before, const Message& message, std::optional<bool> think) const {
  const std::string& content = message.content;
  bool closes = content.find(kClose) != std::string::npos && !StartsWith(StripLeft(content), kOpen);
  if (!closes || before.empty()) return false;
  std::optional<bool> switched = Switch(&before, think);
  auto role = end_.find(before.back().role);
  if (role == end_.end()) return false;
  auto end = role->second.find(NameOf(switched));
  return end != role->second.end() && OpensThinking(end->second);
}

// Takes the markers out of user messages; the last message's decides.
std::optional<bool> ChatRules::Switch(std::vector<Message>* messages, std::optional<bool> think) const {
  if (!takes_markers_) return think;
  for (Message& message : *messages) {
    if (message.role != "user") continue;
    std::optional<Marker> marker = MarkerOf(message.content);
    if (!marker) continue;
    message.content.resize(marker->begin);
    if (&message == &messages->back()) think = marker->think;
  }
  return think;
}

std::vector<ChatRules::Piece> ChatRules::Pieces(const std::vector<Message>& messages,
                                                std::optional<bool> think) const {
  std::vector<Piece> pieces;
  auto put = [&](const Texts& texts, const std::string& key, const std::string& where) {
    auto text = texts.find(key);
    if (text == texts.end()) Fail(MINICPM_REQUEST, "the chat template takes no conversation with ", where, "; change the messages");
    pieces.push_back({text->second, true});
  };
  static const Texts none;
  auto row = [&](const std::map<std::string, Texts>& table, const std::string& key) -> const Texts& {
    auto found = table.find(key);
    return found == table.end() ? none : found->second;
  };
  put(start_, messages[0].role, messages[0].role + " as the first message");
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    pieces.push_back({std::string(strips_ ? Strip(message.content) : std::string_view(message.content)), false});
    if (i + 1 == messages.size()) {
      put(row(end_, message.role), NameOf(think), message.role + " as the last message");
    } else {
      put(row(between_, message.role), messages[i + 1].role, messages[i + 1].role + " after " + message.role);
    }
  }
  return pieces;
}

// Text between two control tokens is encoded in one go, across pieces, so that merges come out as for a harmless message.
std::vector<int32_t> ChatRules::Ids(const Tokenizer& tokenizer, const std::vector<Piece>& pieces) const {
  bool fakes = false;
  std::string text;
  for (const Piece& piece : pieces) {
    text += piece.text;
    for (const auto& entry : tokenizer.control()) {
      fakes = fakes || (!piece.trusted && piece.text.find(entry.first) != std::string::npos);
    }
  }
  if (!fakes) return tokenizer.Encode(text);
  std::vector<int32_t> ids;
  std::string run;
  auto end_run = [&] {
    std::vector<int32_t> plain = tokenizer.Encode(run, true);
    ids.insert(ids.end(), plain.begin(), plain.end());
    run.clear();
  };
  for (const Piece& piece : pieces) {
    if (!piece.trusted) {
      run += piece.text;
      continue;
    }
    for (const Part& part : CutAt(tokenizer.control(), piece.text)) {
      if (part.id < 0) {
        run += part.text;
        continue;
      }
      end_run();
      ids.push_back(part.id);
    }
  }
  end_run();
  return ids;
}

}  // namespace minicpm
