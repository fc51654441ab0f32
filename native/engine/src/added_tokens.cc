#include "added_tokens.h"

#include <algorithm>

#include "text.h"

namespace minicpm {
namespace {

bool Flag(const Json& token, const char* name) {
  std::optional<Json> flag = token.Find(name);
  return flag && flag->Bool();
}

}  // namespace

AddedTokens::AddedTokens(const Json& list, const std::function<std::string(const std::string&)>& normalize) {
  for (const Json& token : list.List()) {
    if (Flag(token, "single_word")) token.Refuse("no token with single_word, which this engine doesn't know");
    std::string content = token.At("content").Text();
    bool normalized = Flag(token, "normalized");
    all_.push_back({static_cast<int32_t>(token.At("id").Whole(0, INT32_MAX)), content,
                    normalized ? normalize(content) : content, Flag(token, "special"), normalized,
                    Flag(token, "lstrip"), Flag(token, "rstrip")});
  }
  for (const AddedToken& token : all_) {
    if (!token.pattern.empty()) by_first_[token.pattern[0]].push_back(&token);
  }
  for (auto& [first, tokens] : by_first_) {
    std::stable_sort(tokens.begin(), tokens.end(), [](const AddedToken* a, const AddedToken* b) {
      return a->pattern.size() > b->pattern.size();
    });
  }
}

const AddedToken* AddedTokens::Match(std::string_view text, size_t at, bool normalized) const {
  auto bucket = by_first_.find(text[at]);
  if (bucket == by_first_.end()) return nullptr;
  for (const AddedToken* token : bucket->second) {
    if (token->normalized == normalized && StartsWith(text.substr(at), token->pattern)) return token;
  }
  return nullptr;
}

std::vector<Part> AddedTokens::Split(std::string_view text, bool normalized, bool plain) const {
  std::vector<Part> parts;
  size_t begin = 0;  // of what no part has yet
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = Match(text, at, normalized);
    if (!token) {
      ++at;
      continue;
    }
    size_t start = at, stop = at + token->pattern.size();
    at = stop;
    if (plain && token->special) continue;
    if (token->lstrip) start = std::max(begin, StripRight(text.substr(0, start)).size());
    if (token->rstrip) stop = at = text.size() - StripLeft(text.substr(stop)).size();
    if (begin < start) parts.push_back({-1, text.substr(begin, start - begin)});
    parts.push_back({token->id, text.substr(start, stop - start)});
    begin = stop;
  }
  if (begin < text.size()) parts.push_back({-1, text.substr(begin)});
  return parts;
}

}  // namespace minicpm
